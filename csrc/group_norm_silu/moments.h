// Mean and spread of some values, and how those of many sets make those of all.
#pragma once

#include "../common/device.h"

namespace fastdiff {

constexpr int kWarp = 32;

// Of `count` values: their mean, as the sum of two floats, and the sum of squares about it.
struct alignas(16) Moments {
  float count, mean, rest, squares;
};

// Mean pivot + offset, kept exactly.
__device__ __forceinline__ Moments moments_from(float count, float pivot, float offset,
                                                float squares) {
  const float mean = pivot + offset;
  const float carried = mean - pivot;
  return {count, mean, (pivot - (mean - carried)) + (offset - carried), squares};
}

// The same bits in every lane.
__device__ __forceinline__ float add_lanes(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Lane 0's, in every lane.
__device__ __forceinline__ Moments of_first_lane(const Moments& m) {
  constexpr unsigned kAll = 0xffffffffu;
  return {__shfl_sync(kAll, m.count, 0), __shfl_sync(kAll, m.mean, 0), __shfl_sync(kAll, m.rest, 0),
          __shfl_sync(kAll, m.squares, 0)};
}

// By a warp: of `sets` sets, of `count` values together. get(i) is asked by lane i % 32, twice: the
// second pass is about the mean, so nothing cancels. `first` is set 0.
template <class Get>
__device__ __forceinline__ Moments merge(int sets, float count, const Moments& first,
                                         const Get& get) {
  const int lane = threadIdx.x % kWarp;
  const auto apart = [&](const Moments& m) {
    return (m.mean - first.mean) + (m.rest - first.rest);
  };
  float sum = 0, squares = 0;
  for (int i = lane; i < sets; i += kWarp) {
    const Moments m = get(i);
    sum += m.count * apart(m);
  }
  const float offset = divide(add_lanes(sum), count);
  for (int i = lane; i < sets; i += kWarp) {
    const Moments m = get(i);
    const float d = apart(m) - offset;
    squares += m.squares + m.count * d * d;
  }
  return moments_from(count, first.mean, first.rest + offset, add_lanes(squares));
}

}  // namespace fastdiff
