// Products of matrices in float32 for kernels that cpu_targets.h compiles; included within a
// namespace.

constexpr int kVectors = kPanel / kLanes;
// Rows whose sums and weights fit the registers; with more of them AVX-512 was no faster.
constexpr int kRows = FASTDIFF_LEVEL >= 4 ? 8 : FASTDIFF_LEVEL >= 3 ? 3 : 1;
// V is [chunks, rows, kRowStride]: constant strides leave one address to each product, and rows a
// little longer than a chunk do not meet in the same sets of the cache.
constexpr std::int64_t kRowStride = kChunk + 16;

// Where row 0's channel c lies in V of so many rows.
FASTDIFF_INLINE std::int64_t in_chunks(std::int64_t c, std::int64_t rows) {
  return c / kChunk * rows * kRowStride + c % kChunk;
}

// A row of C channels to V of so many rows.
template <class T>
FASTDIFF_INLINE void row_to_chunks(const T* from, std::int64_t C, std::int64_t rows, float* v) {
  for (std::int64_t c = 0; c < C; c += kLanes) {
    store(v + in_chunks(c, rows), load(from + c, lanes_of<kLanes>(C, c)));
  }
}

// m [rows, kPanel] (+)= v [rows, n] u [n, kPanel], while `ahead` comes nearer, n times `step`
// floats.
template <int rows>
void multiply(const float* v, const float* u, std::int64_t n, const float* ahead, std::int64_t step,
              bool first, float* m) {
  Floats sums[rows][kVectors] = {};
  for (std::int64_t k = 0; k < n; ++k, u += kPanel, ahead += step) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + kPanel / 2);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const Floats weights = load(u + j * kLanes);
#pragma GCC unroll 8
      for (int row = 0; row < rows; ++row) sums[row][j] += v[row * kRowStride + k] * weights;
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      float* to = m + row * kPanel + j * kLanes;
      store(to, first ? sums[row][j] : load(to) + sums[row][j]);
    }
  }
}

using Multiply = void (*)(const float* v, const float* u, std::int64_t n, const float* ahead,
                          std::int64_t step, bool first, float* m);

template <int... rows>
constexpr std::array<Multiply, sizeof...(rows)> multiplies(std::integer_sequence<int, rows...>) {
  return {multiply<rows + 1>...};
}
constexpr auto kMultiplyByRows = multiplies(std::make_integer_sequence<int, kRows>());

// m [rows, kPanel] = v [rows, C] u [C, kPanel], added up by chunks: one long sum rounds more.
inline void multiply_panel(const float* v, const float* u, std::int64_t rows, std::int64_t C,
                           float* m) {
  const std::int64_t blocks = divide_up(rows, kRows);
  const std::int64_t step = kPanel / blocks;
  for (std::int64_t k = 0; k < C; k += kChunk, v += rows * kRowStride) {
    const std::int64_t n = std::min(kChunk, C - k);
    const float* next = u + (k + n) * kPanel;
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = rows * block / blocks, last = rows * (block + 1) / blocks;
      kMultiplyByRows[last - first - 1](v + first * kRowStride, u + k * kPanel, n,
                                        next + block * n * step, step, k == 0, m + first * kPanel);
    }
  }
}
