// What cpu_targets.h compiles for each kind of processor: one task's tiles, from x to y.

constexpr int kVectors = kPanel / kLanes;
// Rows whose sums and weights fit the registers; with more of them AVX-512 was no faster.
constexpr int kRows = FASTDIFF_LEVEL >= 4 ? 8 : FASTDIFF_LEVEL >= 3 ? 3 : 1;
// V is [16, chunks, tiles, kRowStride]: constant strides leave one address to each product, and
// rows a little longer than a chunk do not meet in the same sets of the cache.
constexpr std::int64_t kRowStride = kChunk + 16;

#include "cpu_tiles.h"

// ---- V = B^T d B of every tile ----

template <class T>
void transform(const Conv3x3Params& p, const Range& tiles, const T* zeros, float* v) {
  const std::int64_t C = p.channels, chunk = tiles.size() * kRowStride;
  const std::int64_t position = chunks(C) * chunk;
  for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile, v += kRowStride) {
    const T* at[16];
    patch(p, tile, zeros, at);
    for (std::int64_t c = 0; c < C; c += kLanes) {
      const int lanes = static_cast<int>(std::min<std::int64_t>(kLanes, C - c));
      float* to = v + c / kChunk * chunk + c % kChunk;
      lanes == kLanes ? transform_tile(at, c, kLanes, to, position)
                      : transform_tile(at, c, lanes, to, position);
    }
  }
}

// ---- M = V U, a panel of output channels at a time ----

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

// m [tiles, kPanel] = v u [C, kPanel], added up by chunks: one long sum rounds more.
inline void multiply_position(const float* v, const float* u, std::int64_t tiles, std::int64_t C,
                              float* m) {
  const std::int64_t blocks = divide_up(tiles, kRows);
  const std::int64_t step = kPanel / blocks;
  for (std::int64_t k = 0; k < C; k += kChunk, v += tiles * kRowStride) {
    const std::int64_t n = std::min(kChunk, C - k);
    const float* next = u + (k + n) * kPanel;
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = tiles * block / blocks, last = tiles * (block + 1) / blocks;
      kMultiplyByRows[last - first - 1](v + first * kRowStride, u + k * kPanel, n,
                                        next + block * n * step, step, k == 0, m + first * kPanel);
    }
  }
}

// ---- y = A^T M A, bias, residual and scale ----

FASTDIFF_INLINE void transform_out(const Floats (&m)[4], Floats& even, Floats& odd) {
  even = m[0] + m[1] + m[2];
  odd = m[1] - m[2] - m[3];
}

template <class T>
FASTDIFF_INLINE void finish_tile(const Conv3x3Params& p, const TilePlace& place, std::int64_t c,
                                 const float* m, std::int64_t position) {
  const int lanes = static_cast<int>(std::min<std::int64_t>(kLanes, p.out_channels - c));
  Floats half[2][4], y[2][2];
  for (int column = 0; column < 4; ++column) {
    Floats rows[4];
    for (int row = 0; row < 4; ++row) rows[row] = load(m + (4 * row + column) * position);
    transform_out(rows, half[0][column], half[1][column]);
  }
  for (int row = 0; row < 2; ++row) transform_out(half[row], y[row][0], y[row][1]);
  const Floats bias = p.bias ? load(static_cast<const T*>(p.bias) + c, lanes) : splat(0);
  const T* residual = static_cast<const T*>(p.residual.data);
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      const std::int64_t at_y = place.y + row, at_x = place.x + column;
      if (at_y >= p.height || at_x >= p.width) continue;
      Floats value = y[row][column] + bias;
      if (residual) {
        value += load(residual + place.sample * p.residual.sample + at_y * p.residual.row +
                          at_x * p.residual.pixel + c,
                      lanes);
      }
      const std::int64_t pixel = (place.sample * p.height + at_y) * p.width + at_x;
      store(static_cast<T*>(p.y) + pixel * p.out_channels + c, value * p.scale, lanes);
    }
  }
}

template <class T>
void finish(const Conv3x3Params& p, const Range& tiles, std::int64_t panel, const float* m) {
  const std::int64_t position = tiles.size() * kPanel;
  for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile, m += kPanel) {
    const TilePlace place = tile_place(p, tile);
    for (int j = 0; j < kVectors; ++j) {
      const std::int64_t c = panel * kPanel + j * kLanes;
      if (c < p.out_channels) finish_tile<T>(p, place, c, m + j * kLanes, position);
    }
  }
}

template <class T>
void convolve(const Conv3x3Params& p, const Range& tiles, const Range& panels, Workspace& space) {
  const std::int64_t C = p.channels, v_position = chunks(C) * tiles.size() * kRowStride;
  const std::int64_t m_position = tiles.size() * kPanel;
  float* v = space.at_least(16 * (v_position + m_position) + C);
  float* m = v + 16 * v_position;
  float* zeros = m + 16 * m_position;
  std::fill_n(m, 16 * m_position + C, 0.0f);
  transform(p, tiles, reinterpret_cast<const T*>(zeros), v);
  for (std::int64_t panel = panels.first; panel < panels.last; ++panel) {
    for (int k = 0; k < 16; ++k) {
      // An upsampled tile repeats its middle row and column, whose difference is zero.
      if (p.upsample && (k / 4 == 2 || k % 4 == 2)) continue;
      multiply_position(v + k * v_position, p.packed + (panel * 16 + k) * C * kPanel, tiles.size(),
                        C, m + k * m_position);
    }
    finish<T>(p, tiles, panel, m);
  }
}

inline Convolve convolve_for(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return convolve<float>;
    case DType::float16:
      return convolve<Float16>;
    default:
      return convolve<BFloat16>;
  }
}
