// What cpu_targets.h compiles for each kind of processor: one task's tiles, from x to y.

#include "../common/cpu_products.h"
#include "cpu_tiles.h"

// ---- V = B^T d B of every tile ----

template <class T>
void transform(const Conv3x3Params& p, const Range& tiles, const T* zeros, float* v) {
  const std::int64_t C = p.channels, position = chunks(C) * tiles.size() * kRowStride;
  for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile, v += kRowStride) {
    const T* at[16];
    patch(p, tile, zeros, at);
    for (std::int64_t c = 0; c < C; c += kLanes) {
      const int lanes = static_cast<int>(std::min<std::int64_t>(kLanes, C - c));
      float* to = v + in_chunks(c, tiles.size());
      lanes == kLanes ? transform_tile(at, c, kLanes, to, position)
                      : transform_tile(at, c, lanes, to, position);
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
      multiply_panel(v + k * v_position, p.packed + (panel * 16 + k) * C * kPanel, tiles.size(), C,
                     m + k * m_position);
    }
    finish<T>(p, tiles, panel, m);
  }
}

inline Convolve convolve_for(DType dtype) {
  return for_dtype(dtype, [](auto element) -> Convolve { return convolve<decltype(element)>; });
}
