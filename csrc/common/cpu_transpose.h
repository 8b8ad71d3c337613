// Transposed blocks for kernels that cpu_targets.h compiles; included within a namespace.

// to[j][i] = from[i][j] for i and j up to 16, of 4 bytes each; rows lie so many of them apart.
#if FASTDIFF_LEVEL >= 4
FASTDIFF_INLINE void transpose_16x16(const void* from, std::int64_t from_stride, void* to,
                                     std::int64_t to_stride) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(static_cast<const std::int32_t*>(from) + i * from_stride);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  // Part k of a[i + j], for i = 0, 4, 8, 12: the four rows' column 4 * k + j.
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  constexpr int kEvenParts = 0x88, kOddParts = 0xdd;
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], kEvenParts);
      b[i + 4 + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], kOddParts);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < 8; ++j) {
    auto* const row = static_cast<std::int32_t*>(to) + j * to_stride;
    _mm512_storeu_si512(row, _mm512_shuffle_i32x4(b[j], b[8 + j], kEvenParts));
    _mm512_storeu_si512(row + 8 * to_stride, _mm512_shuffle_i32x4(b[j], b[8 + j], kOddParts));
  }
}
#else
FASTDIFF_INLINE void transpose_16x16(const void* from, std::int64_t from_stride, void* to,
                                     std::int64_t to_stride) {
  for (std::int64_t i = 0; i < 16; ++i) {
    for (std::int64_t j = 0; j < 16; ++j) {
      std::memcpy(static_cast<std::int32_t*>(to) + j * to_stride + i,
                  static_cast<const std::int32_t*>(from) + i * from_stride + j, 4);
    }
  }
}
#endif
