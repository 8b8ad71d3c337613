// Products of bfloat16 matrices by the processor's matrix unit (Intel's AMX), and the same in plain
// C++; included within a namespace.
//
// sums [16 * rows, 32] of float32 += a [16 * rows, 32] b [32, 32]: b as two halves of 16 columns,
// each [16, 16, 2] with the values of two rows of b side by side.

constexpr int kTileRows = 16, kTileDepth = 32, kTileColumns = 32;
constexpr std::int64_t kTileSize = kTileDepth * kTileColumns;
constexpr int kAwake = 18;  // products, after which a unit is kept awake

class PlainTiles {
  float sums_[2 * kTileRows][kTileColumns];

  static float wide(BFloat16 value) { return bit_cast<float>(std::uint32_t{value.bits} << 16); }

 public:
  template <int rows>
  void zero() {
    std::fill_n(sums_[0], rows * kTileRows * kTileColumns, 0.0f);
  }

  template <int rows>
  void load_from(const float* from) {
    std::copy_n(from, rows * kTileRows * kTileColumns, sums_[0]);
  }

  // The rows of a begin at `a`, those from 16 on at `a_below`, `stride` elements apart.
  template <int rows>
  void multiply_add(const BFloat16* a, const BFloat16* a_below, std::int64_t stride,
                    const BFloat16* b) {
    for (int row = 0; row < rows * kTileRows; ++row) {
      const BFloat16* const of_row =
          row < kTileRows ? a + row * stride : a_below + (row - kTileRows) * stride;
      for (int k = 0; k < kTileDepth; ++k) {
        const float left = wide(of_row[k]);
        for (int column = 0; column < kTileColumns; ++column) {
          const int half = column / 16 * kTileRows * 32;
          sums_[row][column] += left * wide(b[half + k / 2 * 32 + column % 16 * 2 + k % 2]);
        }
      }
    }
  }

  void stay_awake() {}

  template <int rows>
  void store_to(float* to) const {
    std::copy_n(sums_[0], rows * kTileRows * kTileColumns, to);
  }
};

#if FASTDIFF_LEVEL >= 5
// A thread's tiles are its own from construction on. In assembly, for compilers that know no such
// registers: 0 to 3 are sums, 4 and 5 rows of a, 6 and 7 columns of b.
class MatrixUnitTiles {
  struct alignas(64) Configuration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };

  alignas(64) float spare_[kTileRows * kTileColumns];

  template <int tile>
  static FASTDIFF_INLINE void load_tile(const void* from, std::int64_t bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(tile) : "memory");
  }
  template <int sums, int a, int b>
  static FASTDIFF_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
  template <int tile>
  static FASTDIFF_INLINE void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  template <int tile>
  static FASTDIFF_INLINE void store_tile(float* to) {
    constexpr std::int64_t kBytes = kTileColumns * sizeof(float);
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(kBytes), "i"(tile) : "memory");
  }

 public:
  MatrixUnitTiles() {
    static const Configuration configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
  }
  ~MatrixUnitTiles() { asm volatile("tilerelease" ::: "memory"); }
  MatrixUnitTiles(const MatrixUnitTiles&) = delete;
  MatrixUnitTiles& operator=(const MatrixUnitTiles&) = delete;

  template <int rows>
  FASTDIFF_INLINE void zero() {
    zero_tile<0>(), zero_tile<1>();
    if constexpr (rows == 2) zero_tile<2>(), zero_tile<3>();
  }

  template <int rows>
  FASTDIFF_INLINE void load_from(const float* from) {
    constexpr std::int64_t kBytes = kTileColumns * sizeof(float);
    load_tile<0>(from, kBytes), load_tile<1>(from + 16, kBytes);
    if constexpr (rows == 2) {
      load_tile<2>(from + kTileRows * kTileColumns, kBytes);
      load_tile<3>(from + kTileRows * kTileColumns + 16, kBytes);
    }
  }

  template <int rows>
  FASTDIFF_INLINE void multiply_add(const BFloat16* a, const BFloat16* a_below, std::int64_t stride,
                                    const BFloat16* b) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(BFloat16));
    load_tile<6>(b, 64);
    load_tile<4>(a, bytes);
    multiply<0, 4, 6>();
    load_tile<7>(b + kTileRows * 32, 64);
    multiply<1, 4, 7>();
    if constexpr (rows == 2) {
      load_tile<5>(a_below, bytes);
      multiply<2, 5, 6>();
      multiply<3, 5, 7>();
    }
  }

  // To be called every 8 to 30 products, kAwake of them say: after 2048 cycles without a store the
  // next one takes 1000 (measured on Granite Rapids; half of the time of 36 products).
  FASTDIFF_INLINE void stay_awake() { store_tile<4>(spare_); }

  template <int rows>
  FASTDIFF_INLINE void store_to(float* to) {
    store_tile<0>(to), store_tile<1>(to + 16);
    if constexpr (rows == 2) {
      store_tile<2>(to + kTileRows * kTileColumns);
      store_tile<3>(to + kTileRows * kTileColumns + 16);
    }
  }
};
#endif

// to [2, 16, 16, 2] = from [32, 32]: the values of two rows side by side.
#if FASTDIFF_LEVEL >= 4
FASTDIFF_INLINE void pair_rows(const BFloat16* from, std::int64_t stride, BFloat16* to) {
  alignas(64) static constexpr std::uint16_t kFirst[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kFirst);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int pair = 0; pair < kTileDepth / 2; ++pair, from += 2 * stride, to += 32) {
    const __m512i even = _mm512_loadu_si512(from), odd = _mm512_loadu_si512(from + stride);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, first, odd));
    _mm512_storeu_si512(to + kTileSize / 2, _mm512_permutex2var_epi16(even, second, odd));
  }
}
#else
inline void pair_rows(const BFloat16* from, std::int64_t stride, BFloat16* to) {
  for (std::int64_t row = 0; row < kTileDepth; ++row) {
    for (std::int64_t column = 0; column < kTileColumns; ++column) {
      const std::int64_t half = column / 16 * kTileSize / 2;
      to[half + row / 2 * 32 + column % 16 * 2 + row % 2] = from[row * stride + column];
    }
  }
}
#endif
