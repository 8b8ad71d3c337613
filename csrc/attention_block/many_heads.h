// An attention block of several heads, up to 64 tokens, in one launch. The blocks of a cluster
// share an image: each normalises it, makes q, k and v of its own heads, attends, and after
// reading the others' heads projects to its own channels. No weight is read twice for an image.
#pragma once

#include <cmath>
#include <cstdint>

#include "epilogue.h"
#include "normalize.h"
#include "params.h"
#include "tiles.h"
#include "weights.h"

namespace fastdiff::attention {

// What a block holds: up to `pitch` channels of the image, and `width` of its own.
template <int pitch_, int width_, int slots_, int resident_>
struct ManyHeadsShape {
  static constexpr int rows = 64, pitch = pitch_, width = width_;
  static constexpr int slots = slots_, resident = resident_;  // of weights; blocks an SM
  using Channels = Grid8<rows, width>;
  static constexpr std::size_t shared =
      2 * (rows * pitch + 3 * rows * width + slots * kDepth * width);
};

// A block's rows of the weights: its heads', and its output channels'.
struct ManyHeadsWeights {
  const AttentionBlockParams& p;
  int first, width;

  __device__ int count() const { return 4; }
  __device__ int depth() const { return p.channels; }
  __device__ int columns() const { return width; }
  __device__ const void* matrix(int index) const {
    const void* const whole = index == 0   ? p.query
                              : index == 1 ? p.key
                              : index == 2 ? p.value
                                           : p.proj;
    return static_cast<const std::uint16_t*>(whole) + first * p.channels;
  }
  __device__ bool along_k(int) const { return false; }
};

// Softmax of a quad's rows of 16 x 64 scores in units of log 2, without its division; returns the
// sums of a thread's two rows.
__device__ inline void soften(Sums<16, 64>& scores, int tokens, float (&sums)[2]) {
  using Scores = Sums<16, 64>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = scores.at[0][j][2 * half + e];
        if (Scores::column<false>(j) + e >= tokens) score = -INFINITY;
        largest = fmaxf(largest, score);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = scores.at[0][j][2 * half + e];
        score = power_of_two(score - largest);
        sum += score;
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sums[half] = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
  }
}

// A warp's attention of 16 queries in the head whose channels begin at `first`: q becomes its
// softmax(q k^T) v.
template <class T, int width>
__device__ void attend_head(T* q, const T* k, const T* v, int first_row, int first, int head_dim,
                            int tokens) {
  Sums<16, 64> scores;
  scores.fill(0);
  const AlongRows<width, false> of_q(first_row), of_k(0);
  for (int c = first; c < first + head_dim; c += 16) {
    std::uint32_t a[4], b[4];
    of_q.load(a, q, 0, c);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      of_k.load(b, k, j, c);
      multiply_add(T{}, scores.at[0][2 * j], a, b[0], b[2]);
      multiply_add(T{}, scores.at[0][2 * j + 1], a, b[1], b[3]);
    }
  }
  float sums[2];
  soften(scores, tokens, sums);

  std::uint32_t weights[4][4];  // the softened scores, as operands
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float (&pair)[4] = scores.at[0][2 * j + part / 2];
      weights[j][part] = narrow<T>(pair[part % 2 * 2], pair[part % 2 * 2 + 1]);
    }
  }
  for (int c = first; c < first + head_dim; c += 16) {
    const AcrossRows<width> of_v(c);
    Sums<16, 16> mixed;
    mixed.fill(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t b[4];
      of_v.load(b, v, 0, 16 * j);
      multiply_add(T{}, mixed.at[0][0], weights[j], b[0], b[1]);
      multiply_add(T{}, mixed.at[0][1], weights[j], b[2], b[3]);
    }
    mixed.template store<false, width>(q, first_row, c,
                                       [&](int, int half, int) { return 1 / sums[half]; });
  }
}

// Gathers all heads' channels from the cluster's blocks, `width` from each.
template <class T, class S>
__device__ void gather_heads(T* to, const T* own, int width, int tokens, int channels) {
  const int chunks = channels / 8;
  for (int i = threadIdx.x; i < tokens * chunks; i += kThreads) {
    const int row = i / chunks, chunk = i % chunks;
    const int from = place<S::width>(row, chunk % (width / 8));
    read_of_cluster(chunk_at(to, place<S::pitch>(row, chunk)).pairs, own + from,
                    chunk / (width / 8));
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, S::resident)
    many_heads(const __grid_constant__ AttentionBlockParams p, int cluster) {
  using Grid = typename S::Channels;
  const std::int64_t image_index = blockIdx.x / cluster;
  const int width = p.channels / cluster, first = cluster_rank() * width;
  const int head_dim = p.channels / p.heads;
  T* const image = reinterpret_cast<T*>(dynamic_shared());
  T* const q = image + S::rows * S::pitch;
  T* const k = q + S::rows * S::width;
  T* const v = k + S::rows * S::width;

  const Share share(p.channels);
  request_image<S::pitch>(image, static_cast<const T*>(p.x) + image_index * p.tokens * p.channels,
                          share, p.tokens, S::rows, p.channels);
  WeightStream<T, ManyHeadsWeights, S::width, S::slots> weights({p, first, width},
                                                                v + S::rows * S::width);
  wait_copies<S::slots>();
  if (p.groups > 0) normalize<S::pitch>(p, image, share, reinterpret_cast<unsigned char*>(q));
  weights.begin();

  const int first_row = Grid::row(), first_column = Grid::column();
  const bool active = first_column < width;
  const AlongRows<S::pitch, false> of_image(first_row);
  const AlongRows<kDepth, true> along(first_column);
  const float unit = kLog2E / sqrtf(static_cast<float>(head_dim));
  Sums<Grid::M, Grid::N> sums;
  const auto linear = [&](const void* bias) {
    fill<T>(sums, bias, first + first_column, active);
    multiply<T>(sums, of_image, image, along, weights, p.channels, active);
  };
  const auto keep = [&](T* panel, float factor) {
    if (!active) return;
    sums.template store<true, S::width>(panel, first_row, first_column,
                                        [&](int, int, int) { return factor; });
  };
  linear(p.query_bias);
  keep(q, unit);
  linear(nullptr);  // a bias of k moves a row's scores alike, and softmax ignores it
  keep(k, 1);
  linear(p.value_bias);
  keep(v, 1);
  __syncthreads();

  for (int unit_index = threadIdx.x / kWarp; unit_index < width / head_dim * (S::rows / 16);
       unit_index += kWarps) {
    const int row = unit_index % (S::rows / 16) * 16, head = unit_index / (S::rows / 16);
    if (row < p.tokens) attend_head<T, S::width>(q, k, v, row, head * head_dim, head_dim, p.tokens);
  }
  cluster_barrier();
  gather_heads<T, S>(image, q, width, p.tokens, p.channels);
  cluster_barrier();  // no block ends while others read it
  linear(p.proj_bias);
  if (active) write<T>(sums, p, image_index, first_row, first + first_column);
}

}  // namespace fastdiff::attention
