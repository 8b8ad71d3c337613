// Loads, stores and the sigmoid for kernels that cpu_targets.h compiles; included within a
// namespace.

constexpr int kLanes = 16;
constexpr int kWide = 8;  // vectors side by side: as many as the registers hold

using Floats = Vectors<kLanes>::F;

FASTDIFF_INLINE Floats splat(float value) { return Floats{} + value; }

FASTDIFF_INLINE __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>((1u << count) - 1);
}

FASTDIFF_INLINE Floats load(const float* from, int count = kLanes) {
  return bit_cast<Floats>(_mm512_maskz_loadu_ps(first_lanes(count), from));
}

FASTDIFF_INLINE Floats load(const BFloat16* from, int count = kLanes) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), from));
  return bit_cast<Floats>(_mm512_slli_epi32(bits, 16));
}

FASTDIFF_INLINE Floats load(const Float16* from, int count = kLanes) {
  return bit_cast<Floats>(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), from)));
}

FASTDIFF_INLINE void store(float* to, const Floats& values, int count = kLanes) {
  _mm512_mask_storeu_ps(to, first_lanes(count), bit_cast<__m512>(values));
}

FASTDIFF_INLINE void store(BFloat16* to, const Floats& values, int count = kLanes) {
#if FASTDIFF_LEVEL >= 5
  const auto v = bit_cast<__m256i>(_mm512_cvtneps_pbh(bit_cast<__m512>(values)));
#else
  const auto v = bit_cast<__m256i>(narrow<kLanes>(values, BFloat16{}));
#endif
  _mm256_mask_storeu_epi16(to, first_lanes(count), v);
}

FASTDIFF_INLINE void store(Float16* to, const Floats& values, int count = kLanes) {
  const __m256i v = _mm512_cvtps_ph(bit_cast<__m512>(values), _MM_FROUND_TO_NEAREST_INT);
  _mm256_mask_storeu_epi16(to, first_lanes(count), v);
}

// 2^(i / 32).
alignas(64) constexpr float kRoots[32] = {
    0x1.000000p0f, 0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f, 0x1.172b84p0f, 0x1.1d4874p0f,
    0x1.2387a6p0f, 0x1.29e9e0p0f, 0x1.306fe0p0f, 0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f,
    0x1.4bfdaep0f, 0x1.5342b6p0f, 0x1.5ab07ep0f, 0x1.6247ecp0f, 0x1.6a09e6p0f, 0x1.71f75ep0f,
    0x1.7a1148p0f, 0x1.82589ap0f, 0x1.8ace54p0f, 0x1.93737cp0f, 0x1.9c4918p0f, 0x1.a5503cp0f,
    0x1.ae89fap0f, 0x1.b7f770p0f, 0x1.c199bep0f, 0x1.cb720ep0f, 0x1.d5818ep0f, 0x1.dfc974p0f,
    0x1.ea4afap0f, 0x1.f50766p0f,
};

// 2^(n + r), as exact as T can show: n in 32nds, whose roots a permutation looks up by the low bits
// of `shifted`, and a rest of at most 1/64 for a polynomial.
template <class T>
FASTDIFF_INLINE __m512 power_of_parts(const __m512& shifted, const __m512& n, const __m512& r) {
  const __m512 root = _mm512_permutex2var_ps(_mm512_load_ps(kRoots), _mm512_castps_si512(shifted),
                                             _mm512_load_ps(kRoots + kLanes));
  __m512 power;
  if constexpr (sizeof(T) == 4) {
    const __m512 slope =
        _mm512_fmadd_ps(r, _mm512_set1_ps(0x1.ebfbe4p-3f), _mm512_set1_ps(0x1.62e584p-1f));
    power = _mm512_fmadd_ps(root, _mm512_mul_ps(r, slope), root);
  } else {
    power =
        _mm512_mul_ps(root, _mm512_fmadd_ps(r, _mm512_set1_ps(0x1.62e0a2p-1f), _mm512_set1_ps(1)));
  }
  return _mm512_scalef_ps(power, n);
}

// Adding it leaves 32nds in the low bits.
FASTDIFF_INLINE __m512 rounder_to_32nds() { return _mm512_set1_ps(0x1.8p18f); }

// The larger and the smaller of each two; b where one of them is NaN.
FASTDIFF_INLINE Floats larger(const Floats& a, const Floats& b) {
  return bit_cast<Floats>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
FASTDIFF_INLINE Floats smaller(const Floats& a, const Floats& b) {
  return bit_cast<Floats>(_mm512_min_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}

// 2^x for x of at most 126, as exact as T can show; 2^-126 stands for less.
template <class T>
FASTDIFF_INLINE Floats power_of_two(const Floats& x) {
  const __m512 z = bit_cast<__m512>(larger(splat(-126), x));
  const __m512 shifted = _mm512_add_ps(z, rounder_to_32nds());
  const __m512 n = _mm512_sub_ps(shifted, rounder_to_32nds());
  return bit_cast<Floats>(power_of_parts<T>(shifted, n, _mm512_sub_ps(z, n)));
}

// 1 + 2^(-z log2 e).
template <class T>
FASTDIFF_INLINE Floats sigmoid_denominator(const Floats& z) {
  constexpr int kSmallerMagnitude = 2;  // the sign stays the first operand's
  const __m512 x = _mm512_range_ps(bit_cast<__m512>(z), _mm512_set1_ps(126), kSmallerMagnitude);
  const __m512 log2_e = _mm512_set1_ps(-0x1.715476p0f);
  const __m512 shifted = _mm512_fmadd_ps(x, log2_e, rounder_to_32nds());
  const __m512 n = _mm512_sub_ps(shifted, rounder_to_32nds());
  const __m512 r = _mm512_fmsub_ps(x, log2_e, n);
  return bit_cast<Floats>(_mm512_add_ps(power_of_parts<T>(shifted, n, r), _mm512_set1_ps(1)));
}

// x / y as exact as T can show.
template <class T>
FASTDIFF_INLINE Floats divided(const Floats& x, const Floats& y) {
  if constexpr (sizeof(T) == 4) return x / y;
  return x * bit_cast<Floats>(_mm512_rcp14_ps(bit_cast<__m512>(y)));
}

FASTDIFF_INLINE Floats square_root(const Floats& x) {
  return bit_cast<Floats>(_mm512_sqrt_ps(bit_cast<__m512>(x)));
}
