// Loads, stores and the sigmoid for kernels that cpu_targets.h compiles; included within a
// namespace.

#if FASTDIFF_LEVEL >= 3
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kWide = 2;  // vectors side by side: as many as the registers hold

using Floats = Vectors<kLanes>::F;
using Ints = Vectors<kLanes>::I;

FASTDIFF_INLINE Floats load(const float* from, int count = kLanes) {
  return fastdiff::load<kLanes>(from, count);
}

FASTDIFF_INLINE Floats load(const BFloat16* from, int count = kLanes) {
  return fastdiff::load<kLanes>(from, count);
}

FASTDIFF_INLINE Floats load(const Float16* from, int count = kLanes) {
#if FASTDIFF_LEVEL >= 3
  __m128i v{};
  copy_first<kLanes, Float16>(&v, from, count);
  return bit_cast<Floats>(_mm256_cvtph_ps(v));
#else
  return fastdiff::load<kLanes>(from, count);
#endif
}

FASTDIFF_INLINE void store(float* to, const Floats& values, int count = kLanes) {
  fastdiff::store<kLanes>(to, values, count);
}

FASTDIFF_INLINE void store(BFloat16* to, const Floats& values, int count = kLanes) {
  fastdiff::store<kLanes>(to, values, count);
}

FASTDIFF_INLINE void store(Float16* to, const Floats& values, int count = kLanes) {
#if FASTDIFF_LEVEL >= 3
  const __m128i v = _mm256_cvtps_ph(bit_cast<__m256>(values), _MM_FROUND_TO_NEAREST_INT);
  copy_first<kLanes, Float16>(to, &v, count);
#else
  fastdiff::store<kLanes>(to, values, count);
#endif
}

FASTDIFF_INLINE Floats splat(float value) { return Floats{} + value; }

// 2^(n + r), as exact as T can show: an integer n in the low bits of `shifted`, and a rest of at
// most 1/2 for a polynomial.
template <class T>
FASTDIFF_INLINE Floats power_of_parts(const Floats& shifted, const Floats& rounder,
                                      const Floats& r) {
  Floats p;
  if constexpr (sizeof(T) == 4) {
    p = 0x1.5bba14p-10f * r + 0x1.3cea88p-7f;
    p = ((p * r + 0x1.c6b752p-5f) * r + 0x1.ebf9bcp-3f) * r + 0x1.62e42ap-1f;
  } else {
    p = (0x1.c2a216p-5f * r + 0x1.f00c4cp-3f) * r + 0x1.62f5fap-1f;
  }
  p = p * r + 1.0f;
  const Ints exponent = bit_cast<Ints>(shifted) - bit_cast<Ints>(rounder);
  return p * bit_cast<Floats>((exponent + 127) << 23);
}

// Adding it leaves an integer in the low bits.
FASTDIFF_INLINE Floats rounder_to_integers() { return splat(0x1.8p23f); }

// The larger of each two; b where one of them is NaN.
FASTDIFF_INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }

// 2^x for x of at most 126, as exact as T can show; 2^-126 stands for less.
template <class T>
FASTDIFF_INLINE Floats power_of_two(const Floats& x) {
  const Floats z = larger(splat(-126), x);
  const Floats shifted = z + rounder_to_integers();
  const Floats r = z - (shifted - rounder_to_integers());
  return power_of_parts<T>(shifted, rounder_to_integers(), r);
}

// 1 + 2^(-z log2 e).
template <class T>
FASTDIFF_INLINE Floats sigmoid_denominator(const Floats& z) {
  Floats x = z < -89.0f ? splat(-89.0f) : z;  // beyond, the exponent would leave its field
  x = x > 87.0f ? splat(87.0f) : x;
  const Floats shifted = x * -0x1.715476p0f + rounder_to_integers();
  const Floats r = x * -0x1.715476p0f - (shifted - rounder_to_integers());
  return 1.0f + power_of_parts<T>(shifted, rounder_to_integers(), r);
}

// x / y as exact as T can show.
template <class T>
FASTDIFF_INLINE Floats divided(const Floats& x, const Floats& y) {
  return x / y;
}

FASTDIFF_INLINE Floats square_root(const Floats& x) {
#if FASTDIFF_LEVEL >= 3
  return bit_cast<Floats>(_mm256_sqrt_ps(bit_cast<__m256>(x)));
#else
  Floats root;
  for (int lane = 0; lane < kLanes; ++lane) root[lane] = std::sqrt(x[lane]);
  return root;
#endif
}
