// Some floats at a time on GCC's and Clang's vector extensions; the function that inlines these
// decides by its target which instructions they become.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dtype.h"

// One binary for every x86-64: the loader picks the widest clone that the processor runs.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDIFF_CPU_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define FASTDIFF_CPU_CLONES
#endif
#define FASTDIFF_INLINE inline __attribute__((always_inline))
#define FASTDIFF_LAMBDA_INLINE __attribute__((always_inline))

namespace fastdiff {

template <int lanes>
struct Vectors {
  typedef float F __attribute__((vector_size(4 * lanes)));
  typedef std::int32_t I __attribute__((vector_size(4 * lanes)));
  typedef std::uint32_t U __attribute__((vector_size(4 * lanes)));
  typedef std::uint64_t Wide __attribute__((vector_size(4 * lanes)));
  typedef std::uint16_t Half __attribute__((vector_size(2 * lanes)));
};

constexpr int kLanes = 16;
using Floats = Vectors<kLanes>::F;
using Ints = Vectors<kLanes>::I;

// How many of its lanes a vector from `first` on has of `count`.
template <int lanes>
FASTDIFF_INLINE int lanes_of(std::int64_t count, std::int64_t first) {
  return static_cast<int>(std::clamp<std::int64_t>(count - first, 0, lanes));
}

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// make(T()) for the T that the kernels take for it.
template <class Make>
auto for_dtype(DType dtype, const Make& make) {
  switch (dtype) {
    case DType::float32:
      return make(float());
    case DType::float16:
      return make(Float16());
    default:
      return make(BFloat16());
  }
}

FASTDIFF_INLINE Floats splat(float value) { return Floats{} + value; }

template <class To, class From>
FASTDIFF_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <int lanes, class F = typename Vectors<lanes>::F>
FASTDIFF_INLINE F widen(const F& v, float) {
  return v;
}

template <int lanes, class V = Vectors<lanes>>
FASTDIFF_INLINE typename V::F widen(const typename V::Half& v, BFloat16) {
  return bit_cast<typename V::F>(__builtin_convertvector(v, typename V::U) << 16);
}

template <int lanes, class V = Vectors<lanes>>
FASTDIFF_INLINE typename V::F widen(const typename V::Half& v, Float16) {
  using F = typename V::F;
  using U = typename V::U;
  const U bits = __builtin_convertvector(v, U);
  const U magnitude = bits & 0x7fffu;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  U wide = bit_cast<U>(bit_cast<F>(magnitude << 13) * 0x1p112f);
  wide |= magnitude >= 0x7c00u ? U{} + 0x7f800000u : U{};
  return bit_cast<F>(wide | (bits & 0x8000u) << 16);
}

template <int lanes, class F = typename Vectors<lanes>::F>
FASTDIFF_INLINE F narrow(const F& v, float) {
  return v;
}

template <int lanes, class V = Vectors<lanes>>
FASTDIFF_INLINE typename V::Half narrow(const typename V::F& v, BFloat16) {
  using U = typename V::U;
  const U bits = bit_cast<U>(v);
  const U rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const U nan = U{} + 0x7fc0u;
  const U result = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  return __builtin_convertvector(result, typename V::Half);
}

template <int lanes, class V = Vectors<lanes>>
FASTDIFF_INLINE typename V::Half narrow(const typename V::F& v, Float16) {
  using F = typename V::F;
  using U = typename V::U;
  const U bits = bit_cast<U>(v);
  const U magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // The unit in the last place of 0.5f is float16's smallest subnormal, so this sum rounds to it.
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;
  U half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? U{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? U{} + 0x7e00u : half;
  return __builtin_convertvector(half | (bits >> 16 & 0x8000u), typename V::Half);
}

// Copies `count` of a vector's `lanes` values. Of all of them it is one move: a copy of a size that
// varies would go by pieces through memory, and a vector read from pieces waits for all of them.
template <int lanes, class T>
FASTDIFF_INLINE void copy_first(void* to, const void* from, int count) {
  if (count == lanes) {
    std::memcpy(to, from, sizeof(T) * lanes);
  } else {
    std::memcpy(to, from, sizeof(T) * count);
  }
}

// `count` up to `lanes` values; the lanes beyond hold zero.
template <int lanes = kLanes, class T>
FASTDIFF_INLINE typename Vectors<lanes>::F load(const T* from, int count = lanes) {
  decltype(narrow<lanes>(typename Vectors<lanes>::F{}, T{})) v{};
  copy_first<lanes, T>(&v, from, count);
  return widen<lanes>(v, T{});
}

template <int lanes = kLanes, class T>
FASTDIFF_INLINE void store(T* to, const typename Vectors<lanes>::F& values, int count = lanes) {
  const auto v = narrow<lanes>(values, T{});
  copy_first<lanes, T>(to, &v, count);
}

// exp(x) to about one unit in the last place; infinity above 88.4, and 2^-126 stands for less.
FASTDIFF_INLINE Floats exp(Floats x) {
  x = x > 89.0f ? splat(89.0f) : x;
  x = x < -87.3f ? splat(-87.3f) : x;
  const Floats rounder = splat(0x1.8p23f);  // adding it leaves an integer in the low bits
  const Floats shifted = x * 0x1.715476p0f + rounder;
  const Floats n = shifted - rounder;
  const Floats r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
  Floats p = splat(0x1.6c16c2p-10f);
  p = p * r + 0x1.111112p-7f;
  p = p * r + 0x1.555556p-5f;
  p = p * r + 0x1.555556p-3f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = bit_cast<Ints>(shifted) - bit_cast<Ints>(rounder);
  return p * bit_cast<Floats>((exponent + 127) << 23);
}

}  // namespace fastdiff
