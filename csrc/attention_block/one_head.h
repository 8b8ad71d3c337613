// An attention block of one head, up to 256 tokens, in one launch. A block of threads takes a tile
// of an image's tokens as queries and holds the whole normalised image n as keys and values: as
//   q k^T = (q W_k) n^T + a constant by row, which softmax ignores, and
//   softmax(.) v = (softmax(.) n) W_v^T + b_v, as rows of softmax sum to 1,
// no key and no value is ever made, and tiles of an image exchange nothing. The products are as
// many as in the usual order, or two fewer where the weights come folded.
#pragma once

#include <cmath>
#include <cstdint>

#include "epilogue.h"
#include "normalize.h"
#include "params.h"
#include "tiles.h"
#include "weights.h"

namespace fastdiff::attention {

// The order in which a block of threads asks for weights.
struct OneHeadWeights {
  const AttentionBlockParams& p;

  __device__ int count() const { return p.key == nullptr ? 2 : 4; }
  __device__ int depth() const { return p.channels; }
  __device__ int columns() const { return p.channels; }
  __device__ const void* matrix(int index) const {
    if (index == 0) return p.query;
    if (p.key == nullptr || index == 3) return p.proj;
    return index == 1 ? p.key : p.value;
  }
  __device__ bool along_k(int index) const { return index == 1 && p.key != nullptr; }
};

// What a block of threads holds: `rows` queries, up to `width` channels and `tokens` tokens.
template <int rows_, int width_, int tokens_, int slots_, int resident_>
struct OneHeadShape {
  static constexpr int rows = rows_, width = width_, tokens = tokens_;
  static constexpr int slots = slots_, resident = resident_;  // of weights; blocks an SM
  using Channels = Grid8<rows, width>;                        // products with a column a channel
  using Scores = Grid8<rows, tokens>;                         // products with a column a token

  static __host__ __device__ constexpr int tiles(int present) {
    return (present + rows - 1) / rows;
  }
  static __host__ __device__ constexpr int padded(int present) { return tiles(present) * rows; }
  static constexpr std::size_t shared(int present) {
    const int values = padded(present) * width + rows * width + slots * kDepth * width;
    return values * 2 + rows * Scores::across * sizeof(float);
  }
};

// A row of sums is reduced by 64 columns at a time, each as two halves, whatever part of it a warp
// holds: every shape gives the same bits.
template <class Grid, class Combine>
__device__ float whole_row(const float* parts, int row, const Combine& combine) {
  constexpr int kParts = 64 / Grid::N;  // of 64 columns
  const float* const of_row = parts + row * Grid::across;
  float whole = 0;
#pragma unroll
  for (int i = 0; i < Grid::across / kParts; ++i) {
    float next = of_row[i * kParts];
    if (kParts == 2) next = combine(next, of_row[i * kParts + 1]);
    whole = i == 0 ? next : combine(whole, next);
  }
  return whole;
}

// The part of a row that a thread's quad holds.
template <int M, int N, class Combine>
__device__ float row_part(const Sums<M, N>& sums, int i, int half, const Combine& combine) {
  float part = 0;
#pragma unroll
  for (int first = 0; first < N / 8; first += 4) {
    float of_32 = combine(sums.at[i][first][2 * half], sums.at[i][first][2 * half + 1]);
#pragma unroll
    for (int j = first + 1; j < first + 4; ++j) {
      of_32 = combine(of_32, sums.at[i][j][2 * half]);
      of_32 = combine(of_32, sums.at[i][j][2 * half + 1]);
    }
    of_32 = combine(of_32, __shfl_xor_sync(0xffffffffu, of_32, 1));
    of_32 = combine(of_32, __shfl_xor_sync(0xffffffffu, of_32, 2));
    part = first == 0 ? of_32 : combine(part, of_32);
  }
  return part;
}

// Turns queries [rows, C] in `work`, in units of log 2, into softmax(queries n^T) without its
// division; the rows' sums go to `parts`, and are there for all after the next barrier.
template <class T, class S>
__device__ void attend(T* work, const T* image, float* parts, int tokens, int channels) {
  using Grid = typename S::Scores;
  using Scores = Sums<Grid::M, Grid::N>;
  const int first_row = Grid::row(), first_column = Grid::column();
  const bool idle = Grid::idle(), active = !idle && first_column < S::padded(tokens);
  const auto larger = [](float a, float b) { return fmaxf(a, b); };
  const auto plus = [](float a, float b) { return a + b; };

  Scores scores;
  scores.fill(0);
  if (active) {
    multiply<T>(scores, AlongRows<S::width, false>(first_row), work,
                AlongRows<S::width, true>(first_column), image, channels);
  }
#pragma unroll
  for (int j = 0; j < Grid::N / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (first_column + Scores::template column<true>(j) + e % 2 < tokens) continue;
#pragma unroll
      for (int i = 0; i < Grid::M / 16; ++i) {
        scores.at[i][j][e] = -INFINITY;
      }
    }
  }
  Scores::each_row([&](int i, int half, int row) {
    const float part = row_part(scores, i, half, larger);
    if (!idle) parts[(first_row + row) * Grid::across + first_column / Grid::N] = part;
  });
  __syncthreads();  // every warp has its sums, and parts are whole: `work` may be written

  float sums[Grid::M / 16][2];
  Scores::each_row([&](int i, int half, int row) {
    const float largest = idle ? 0.0f : whole_row<Grid>(parts, first_row + row, larger);
#pragma unroll
    for (int j = 0; j < Grid::N / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = scores.at[i][j][2 * half + e];
        score = power_of_two(score - largest);
      }
    }
    sums[i][half] = row_part(scores, i, half, plus);
  });
  if (active) {
    scores.template store<true, S::width>(work, first_row, first_column,
                                          [](int, int, int) { return 1.0f; });
  }
  __syncthreads();  // largest values have been read
  Scores::each_row([&](int i, int half, int row) {
    if (!idle) parts[(first_row + row) * Grid::across + first_column / Grid::N] = sums[i][half];
  });
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, S::resident)
    one_head(const __grid_constant__ AttentionBlockParams p) {
  using Grid = typename S::Channels;
  const int tiles = S::tiles(p.tokens), padded = S::padded(p.tokens);
  const std::int64_t image_index = blockIdx.x / tiles;
  const int first_query = blockIdx.x % tiles * S::rows;
  T* const image = reinterpret_cast<T*>(dynamic_shared());
  T* const work = image + padded * S::width;
  T* const slices = work + S::rows * S::width;
  float* const parts = reinterpret_cast<float*>(slices + S::slots * kDepth * S::width);

  const Share share(p.channels);
  request_image<S::width>(image, static_cast<const T*>(p.x) + image_index * p.tokens * p.channels,
                          share, p.tokens, padded, p.channels);
  WeightStream<T, OneHeadWeights, S::width, S::slots> weights({p}, slices);
  wait_copies<S::slots>();
  if (p.groups > 0) {
    normalize<S::width>(p, image, share, reinterpret_cast<unsigned char*>(work));
  }
  weights.begin();

  const int first_row = Grid::row(), first_column = Grid::column();
  const bool active = first_column < p.channels;
  const AlongRows<S::width, false> of_work(first_row);
  const AlongRows<kDepth, true> along(first_column);
  const AcrossRows<S::width> across(first_column);
  const float unit = kLog2E / sqrtf(static_cast<float>(p.channels));
  const auto one = [](int, int, int) { return 1.0f; };
  const auto units = [&](int, int, int) { return unit; };
  Sums<Grid::M, Grid::N> sums;

  // q, or q W_k where the weights are folded
  fill<T>(sums, p.query_bias, first_column, active);
  multiply<T>(sums, AlongRows<S::width, false>(first_query + first_row), image, along, weights,
              p.channels, active);
  const bool folded = p.key == nullptr;
  if (active) {
    sums.template store<true, S::width>(work, first_row, first_column,
                                        [&](int, int, int) { return folded ? unit : 1.0f; });
  }
  __syncthreads();
  if (!folded) {  // q W_k
    sums.fill(0);
    multiply<T>(sums, of_work, work, across, weights, p.channels, active);
    if (active) sums.template store<false, S::width>(work, first_row, first_column, units);
    __syncthreads();
  }

  attend<T, S>(work, image, parts, p.tokens, p.channels);

  sums.fill(0);  // softmax(.) n
  if (active) {
    multiply<T>(sums, of_work, work, AcrossRows<S::width>(first_column), image, padded);
  }
  __syncthreads();
  if (active) {
    sums.template store<false, S::width>(work, first_row, first_column, [&](int, int, int row) {
      return 1 / whole_row<typename S::Scores>(parts, row, [](float a, float b) { return a + b; });
    });
  }
  __syncthreads();
  if (!folded) {  // softmax(.) v
    fill<T>(sums, p.value_bias, first_column, active);
    multiply<T>(sums, of_work, work, along, weights, p.channels, active);
    if (active) sums.template store<true, S::width>(work, first_row, first_column, one);
    __syncthreads();
  }
  fill<T>(sums, p.proj_bias, first_column, active);
  multiply<T>(sums, of_work, work, along, weights, p.channels, active);
  if (active) write<T>(sums, p, image_index, first_query + first_row, first_column);
}

}  // namespace fastdiff::attention
