// An attention block of one head, up to 256 tokens, in one launch. A block of threads takes a tile
// of an image's tokens as queries and holds the whole normalised image n as keys and values: as
//   q k^T = (q W_k) n^T + a constant by row, which softmax ignores, and
//   softmax(.) v = (softmax(.) n) W_v^T + b_v, as rows of softmax sum to 1,
// no key and no value is ever made, and tiles of an image exchange nothing. The products are as
// many as in the usual order, or two fewer where the weights come folded.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "normalize.h"
#include "params.h"
#include "tiles.h"
#include "weights.h"

namespace fastdiff {
namespace attention {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

// What a block of threads holds: `rows` queries, up to `width` channels and `tokens` tokens.
template <int rows_, int width_, int tokens_, int slots_, int resident_>
struct Shape {
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

// Sums that start from a bias by column.
template <class T, int M, int N>
__device__ void fill(Sums<M, N>& sums, const void* bias, int first_column, bool active) {
  sums.fill(0);
  if (bias == nullptr || !active) return;
#pragma unroll
  for (int group = 0; group < N / 32; ++group) {
    const int column = first_column + Sums<M, N>::template column<true>(4 * group);
    float values[8];
    widen<T>(*reinterpret_cast<const Chunk*>(static_cast<const T*>(bias) + column), values);
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        sums.at[i][4 * group + k / 2][k % 2] = values[k];
        sums.at[i][4 * group + k / 2][2 + k % 2] = values[k];
      }
    }
  }
}

// y = (x + sums) * residual_scale, by 16 bytes.
template <class T, int M, int N>
__device__ void write(const Sums<M, N>& sums, const AttentionBlockParams& p, std::int64_t image,
                      int first_row, int first_column) {
  const std::int64_t base = image * p.tokens * p.channels;
  Sums<M, N>::each_row([&](int i, int half, int row) {
    if (first_row + row >= p.tokens) return;
#pragma unroll
    for (int group = 0; group < N / 32; ++group) {
      const int column = first_column + Sums<M, N>::template column<true>(4 * group);
      const std::int64_t at = base + (first_row + row) * p.channels + column;
      float x[8], branch[8];
      widen<T>(*reinterpret_cast<const Chunk*>(static_cast<const T*>(p.x) + at), x);
      sums.eight(i, half, group, branch);
#pragma unroll
      for (int k = 0; k < 8; ++k) branch[k] = (x[k] + branch[k]) * p.residual_scale;
      *reinterpret_cast<Chunk*>(static_cast<T*>(p.y) + at) = narrow<T>(branch);
    }
  });
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, S::resident)
    kernel(const __grid_constant__ AttentionBlockParams p) {
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
  WeightStream<T, S::width, S::slots> weights(p, slices);
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

// ---- which shape serves a call ----

using Launch = cudaError_t (*)(const AttentionBlockParams&, cudaStream_t);

template <class T, class S>
cudaError_t launch_shape(const AttentionBlockParams& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.batch * S::tiles(p.tokens));
  return launch(kernel<T, S>, {dim3(blocks), kThreads, S::shared(p.tokens)}, stream, p);
}

// An estimate in clock cycles, to choose between shapes: tensor cores or the weights' stream,
// whichever is slower, after the image has come and been normalised.
template <class S>
double estimated_time(const AttentionBlockParams& p, const Device& device) {
  const double channels = p.channels, padded = S::padded(p.tokens);
  const double matrices = p.key == nullptr ? 2 : 4;
  const double operations = 2 * S::rows * channels * (matrices * channels + 2 * padded);
  const double rate = S::rows == 128 ? 2300 : S::rows == 64 ? 2000 : 1500;
  const double products = std::max(operations / rate, matrices * channels * channels * 2 / 45);
  const double start = padded * channels / 8;
  const std::int64_t blocks = p.batch * S::tiles(p.tokens);
  const std::int64_t rounds = (blocks + device.multiprocessors - 1) / device.multiprocessors;
  return rounds * products + (rounds + S::resident - 1) / S::resident * start;
}

struct Choice {
  Launch launch = nullptr;
  double time = 0;

  template <class T, class S>
  void consider(const AttentionBlockParams& p, const Device& device) {
    if (p.channels > S::width || p.tokens > S::tokens) return;
    if (S::shared(p.tokens) > device.shared) return;
    const double shape_time = estimated_time<S>(p, device);
    if (launch == nullptr || shape_time < time) *this = {launch_shape<T, S>, shape_time};
  }
};

template <class T>
Launch best_launch(const AttentionBlockParams& p) {
  const bool served = p.heads == 1 && p.channels % 64 == 0 && p.tokens > 0 && p.groups >= 0 &&
                      (p.groups == 0 || p.channels % p.groups == 0);
  if (!served) return nullptr;
  const Device device = current_device();
  Choice choice;
  choice.consider<T, Shape<64, 256, 64, 4, 1>>(p, device);
  choice.consider<T, Shape<32, 256, 64, 3, 2>>(p, device);
  choice.consider<T, Shape<64, 512, 64, 3, 1>>(p, device);
  choice.consider<T, Shape<32, 512, 64, 3, 1>>(p, device);
  if (p.tokens > 64) {
    choice.consider<T, Shape<128, 256, 256, 2, 1>>(p, device);
    choice.consider<T, Shape<64, 256, 256, 4, 1>>(p, device);
    choice.consider<T, Shape<32, 256, 256, 4, 1>>(p, device);
  }
  return choice.launch;
}

Launch best_launch(const AttentionBlockParams& p) {
  switch (p.dtype) {
    case DType::float16:
      return best_launch<__half>(p);
    case DType::bfloat16:
      return best_launch<__nv_bfloat16>(p);
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace attention

bool attention_block_takes(const AttentionBlockParams& p) {
  return attention::best_launch(p) != nullptr;
}

const char* attention_block_cuda(const AttentionBlockParams& p, void* stream) {
  const auto launch = attention::best_launch(p);
  if (launch == nullptr) return "no kernel serves these sizes";
  const cudaError_t status = launch(p, static_cast<cudaStream_t>(stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastdiff
