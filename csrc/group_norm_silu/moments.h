// Mean and spread of some values, and how those of two sets make those of both.
#pragma once

#include "../common/device.h"

namespace fastdiff {

// Of `count` values: their mean, as the sum of two floats, and the sum of squares about it.
struct alignas(16) Moments {
  float count = 0, mean = 0, rest = 0, squares = 0;
};

// Mean pivot + offset, kept exactly.
__device__ __forceinline__ Moments moments_from(float count, float pivot, float offset,
                                                float squares) {
  const float mean = pivot + offset;
  const float carried = mean - pivot;
  return {count, mean, (pivot - (mean - carried)) + (offset - carried), squares};
}

// Chan, Golub and LeVeque 1979, equation 2.1.
__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0) return {};
  const float share = fast_divide(b.count, count);
  const float apart = (b.mean - a.mean) + (b.rest - a.rest);
  return moments_from(count, a.mean, a.rest + apart * share,
                      a.squares + b.squares + apart * apart * (a.count * share));
}

__device__ __forceinline__ Moments from_lane(const Moments& m, int offset) {
  constexpr unsigned kAll = 0xffffffffu;
  return {__shfl_xor_sync(kAll, m.count, offset), __shfl_xor_sync(kAll, m.mean, offset),
          __shfl_xor_sync(kAll, m.rest, offset), __shfl_xor_sync(kAll, m.squares, offset)};
}

// Of all lanes of a warp; lane 0's result counts.
__device__ __forceinline__ Moments merge_lanes(Moments m, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) m = merge(m, from_lane(m, offset));
  return m;
}

}  // namespace fastdiff
