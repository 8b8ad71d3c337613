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
#if FASTDIFF_LEVEL >= 3
  __m128i v{};
  copy_first<kLanes, BFloat16>(&v, from, count);
  return bit_cast<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
#else
  return fastdiff::load<kLanes>(from, count);
#endif
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
#if FASTDIFF_LEVEL >= 3
  const __m256 floats = bit_cast<__m256>(values);
  const __m256i bits = _mm256_castps_si256(floats);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(floats, floats, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
  const __m128i v =
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  copy_first<kLanes, BFloat16>(to, &v, count);
#else
  fastdiff::store<kLanes>(to, values, count);
#endif
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

// 2^(n + r), as exact as T can show: n in the low bits of `shifted`, and a rest r for a polynomial.
#if FASTDIFF_LEVEL >= 3
// 2^(i / 8), less i eighths in its exponent: an integer sum with n in eighths is then 2^n.
alignas(32) constexpr std::int32_t kRoots[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                                0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

template <class T>
FASTDIFF_INLINE Floats power_of_parts(const Floats& shifted, const Floats& r) {
  const __m256i eighths = bit_cast<__m256i>(shifted);
  const __m256i roots = _mm256_load_si256(reinterpret_cast<const __m256i*>(kRoots));
  const __m256i root = _mm256_permutevar8x32_epi32(roots, eighths);
  const __m256i power = _mm256_add_epi32(root, _mm256_slli_epi32(eighths, 20));
  Floats p;
  if constexpr (sizeof(T) == 4) {
    p = (0x1.c6cp-5f * r + 0x1.ec0c32p-3f) * (r * r) + (0x1.62e43p-1f * r + 1.0f);
  } else {
    p = (0x1.ec0e96p-3f * r + 0x1.62f97cp-1f) * r + 1.0f;
  }
  return p * bit_cast<Floats>(power);
}

// Adding it leaves eighths in the low bits.
FASTDIFF_INLINE Floats rounder() { return splat(0x1.8p20f); }
#else
template <class T>
FASTDIFF_INLINE Floats power_of_parts(const Floats& shifted, const Floats& r) {
  const Floats square = r * r;  // by pairs: a chain of products would be what a call waits for
  Floats p;
  if constexpr (sizeof(T) == 4) {
    p = (0x1.5bba14p-10f * r + 0x1.3cea88p-7f) * square + (0x1.c6b752p-5f * r + 0x1.ebf9bcp-3f);
    p = p * square + (0x1.62e42ap-1f * r + 1.0f);
  } else {
    p = (0x1.c2a216p-5f * r + 0x1.f00c4cp-3f) * square + (0x1.62f5fap-1f * r + 1.0f);
  }
  return p * bit_cast<Floats>((bit_cast<Ints>(shifted) + 127) << 23);
}

// Adding it leaves an integer in the low bits.
FASTDIFF_INLINE Floats rounder() { return splat(0x1.8p23f); }
#endif

// The larger and the smaller of each two; b where one of them is NaN.
FASTDIFF_INLINE Floats larger(const Floats& a, const Floats& b) {
#if FASTDIFF_LEVEL >= 3
  return bit_cast<Floats>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
FASTDIFF_INLINE Floats smaller(const Floats& a, const Floats& b) {
#if FASTDIFF_LEVEL >= 3
  return bit_cast<Floats>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}

// 2^x for x of at most 126, as exact as T can show; 2^-126 stands for less.
template <class T>
FASTDIFF_INLINE Floats power_of_two(const Floats& x) {
  const Floats z = larger(splat(-126), x);
  const Floats shifted = z + rounder();
  const Floats r = z - (shifted - rounder());
  return power_of_parts<T>(shifted, r);
}

// 1 + 2^(-z log2 e).
template <class T>
FASTDIFF_INLINE Floats sigmoid_denominator(const Floats& z) {
  // Beyond, the exponent would leave its field; the lower one gives infinity.
  const Floats x = smaller(splat(87), larger(splat(-88.75f), z));
  const Floats shifted = x * -0x1.715476p0f + rounder();
  const Floats r = x * -0x1.715476p0f - (shifted - rounder());
  return 1.0f + power_of_parts<T>(shifted, r);
}

// x / y as exact as T can show.
template <class T>
FASTDIFF_INLINE Floats divided(const Floats& x, const Floats& y) {
#if FASTDIFF_LEVEL >= 3
  if constexpr (std::is_same_v<T, BFloat16>) {
    return x * bit_cast<Floats>(_mm256_rcp_ps(bit_cast<__m256>(y)));
  }
#endif
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
