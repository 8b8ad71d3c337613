// What stands before and after a product: its bias, and the residual sum.
#pragma once

#include <cstdint>

#include "params.h"
#include "tiles.h"

namespace fastdiff::attention {

constexpr float kLog2E = 1.44269504088896340736f;

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

}  // namespace fastdiff::attention
