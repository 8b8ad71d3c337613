// Sixteen floats at a time on GCC's and Clang's vector extensions; the function that inlines these
// decides by its target which instructions they become.
#pragma once

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

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

FASTDIFF_INLINE Floats splat(float value) { return Floats{} + value; }

template <class To, class From>
FASTDIFF_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

FASTDIFF_INLINE Floats widen(const Floats& v, float) { return v; }

FASTDIFF_INLINE Floats widen(const Halves& v, BFloat16) {
  return bit_cast<Floats>(__builtin_convertvector(v, Bits) << 16);
}

FASTDIFF_INLINE Floats widen(const Halves& v, Float16) {
  const Bits bits = __builtin_convertvector(v, Bits);
  const Bits magnitude = bits & 0x7fffu;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  Bits wide = bit_cast<Bits>(bit_cast<Floats>(magnitude << 13) * 0x1p112f);
  wide |= magnitude >= 0x7c00u ? Bits{} + 0x7f800000u : Bits{};
  return bit_cast<Floats>(wide | (bits & 0x8000u) << 16);
}

FASTDIFF_INLINE Floats narrow(const Floats& v, float) { return v; }

FASTDIFF_INLINE Halves narrow(const Floats& v, BFloat16) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Bits nan = Bits{} + 0x7fc0u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves);
}

FASTDIFF_INLINE Halves narrow(const Floats& v, Float16) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // The unit in the last place of 0.5f is float16's smallest subnormal, so this sum rounds to it.
  const Bits subnormal = bit_cast<Bits>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  Bits half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? Bits{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : half;
  return __builtin_convertvector(half | (bits >> 16 & 0x8000u), Halves);
}

// `count` up to kLanes values; the lanes beyond hold zero.
template <class T>
FASTDIFF_INLINE Floats load(const T* from, int count = kLanes) {
  decltype(narrow(Floats{}, T{})) v{};
  std::memcpy(&v, from, count == kLanes ? sizeof(v) : sizeof(T) * count);
  return widen(v, T{});
}

template <class T>
FASTDIFF_INLINE void store(T* to, const Floats& values, int count = kLanes) {
  const auto v = narrow(values, T{});
  std::memcpy(to, &v, count == kLanes ? sizeof(v) : sizeof(T) * count);
}

FASTDIFF_INLINE float sum(const Floats& v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
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

FASTDIFF_INLINE Floats silu(const Floats& x) { return x / (1.0f + exp(-x)); }

}  // namespace fastdiff
