// CUDA's 16-bit types on the CPU.
#pragma once

#include <cstdint>
#include <cstring>

template <class To, class From>
inline To on_cpu_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline std::uint32_t __float_as_uint(float v) { return on_cpu_bits<std::uint32_t>(v); }
inline float __uint_as_float(std::uint32_t v) { return on_cpu_bits<float>(v); }

inline __half __ushort_as_half(std::uint16_t bits) { return {bits}; }
inline std::uint16_t __half_as_ushort(__half v) { return v.bits; }
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }

inline float __half2float(__half v) { return static_cast<float>(on_cpu_bits<_Float16>(v.bits)); }
inline float __bfloat162float(__nv_bfloat16 v) {
  return __uint_as_float(static_cast<std::uint32_t>(v.bits) << 16);
}

inline __half __float2half_rn(float v) {
  return {on_cpu_bits<std::uint16_t>(static_cast<_Float16>(v))};
}
// To the nearest, ties to even; every NaN becomes CUDA's.
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  if (v != v) return {0x7fff};
  const std::uint32_t bits = __float_as_uint(v);
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline __half2 __floats2half2_rn(float low, float high) {
  return {__float2half_rn(low), __float2half_rn(high)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
