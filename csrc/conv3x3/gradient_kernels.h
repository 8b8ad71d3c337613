// What cpu_targets.h compiles for each kind of processor: one task's block of the weights.

#include "cpu_tiles.h"

constexpr int kVectors = kColumns / kLanes;
// Rows whose sums fit the registers, beside the columns they are multiplied by.
constexpr int kRows = FASTDIFF_LEVEL >= 4 ? 8 : FASTDIFF_LEVEL >= 3 ? 3 : 1;

// ---- V = B^T d B of x, Z = A g A^T of the gradient: [16, kTiles, stride] ----

// Zeros fill up the last kColumns channels.
template <class T>
void transform_x(const Conv3x3GradientParams& p, const Range& tiles, const Range& channels,
                 const T* zeros, float* v) {
  const std::int64_t count = divide_up(channels.size(), kColumns) * kColumns;
  for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile, v += kColumnStride) {
    const T* at[16];
    patch(p, tile, zeros, at);
    for (std::int64_t c = 0; c < count; c += kLanes) {
      transform_tile(at, channels.first + c, lanes_of<kLanes>(channels.size(), c), v + c,
                     kTiles * kColumnStride);
    }
  }
}

FASTDIFF_INLINE void spread(const Floats& even, const Floats& odd, Floats (&to)[4]) {
  to[0] = even;
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = -odd;
}

template <class T>
void transform_gradient(const Conv3x3GradientParams& p, const Range& tiles, const Range& channels,
                        const T* zeros, float* z) {
  for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile, z += kRowStride) {
    const TilePlace place = tile_place(p, tile);
    const T* at[2][2];
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const std::int64_t y = place.y + i, x = place.x + j;
        at[i][j] = y < p.height && x < p.width
                       ? static_cast<const T*>(p.grad.data) + place.sample * p.grad.sample +
                             y * p.grad.row + x * p.grad.pixel
                       : zeros;
      }
    }
    for (std::int64_t c = channels.first; c < channels.last; c += kLanes) {
      const int lanes = lanes_of<kLanes>(channels.last, c);
      Floats columns[2][4], positions[4];
      for (int j = 0; j < 2; ++j) {
        spread(load(at[0][j] + c, lanes), load(at[1][j] + c, lanes), columns[j]);
      }
      float* to = z + c - channels.first;
      for (int i = 0; i < 4; ++i) {
        spread(columns[0][i], columns[1][i], positions);
        for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * kTiles * kRowStride, positions[j]);
      }
    }
  }
}

// ---- U += Z^T V, by position ----

// u [rows, kColumns] += z [tiles, rows]^T v [tiles, kColumns].
template <int rows>
void add_products(const float* z, const float* v, std::int64_t tiles, float* u) {
  Floats sums[rows][kVectors] = {};
  for (std::int64_t tile = 0; tile < tiles; ++tile, z += kRowStride, v += kColumnStride) {
    Floats columns[kVectors];
    for (int j = 0; j < kVectors; ++j) columns[j] = load(v + j * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sums[row][j] += z[row] * columns[j];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      float* to = u + row * kMostColumns + j * kLanes;
      store(to, load(to) + sums[row][j]);
    }
  }
}

using AddProducts = void (*)(const float*, const float*, std::int64_t, float*);

template <int... rows>
constexpr std::array<AddProducts, sizeof...(rows)> by_rows(std::integer_sequence<int, rows...>) {
  return {add_products<rows + 1>...};
}
constexpr auto kAddProductsByRows = by_rows(std::make_integer_sequence<int, kRows>());

inline void add_position(const float* z, const float* v, std::int64_t tiles, std::int64_t chain,
                         std::int64_t rows, std::int64_t columns, float* u) {
  const std::int64_t blocks = divide_up(rows, kRows);
  for (std::int64_t c = 0; c < columns; c += kColumns) {
    for (std::int64_t i = 0; i < blocks; ++i) {
      const Range block = Range{0, rows}.part(i, blocks);
      for (std::int64_t tile = 0; tile < tiles; tile += chain) {
        kAddProductsByRows[block.size() - 1](
            z + tile * kRowStride + block.first, v + tile * kColumnStride + c,
            std::min(chain, tiles - tile), u + block.first * kMostColumns + c);
      }
    }
  }
}

// Position 5 of Z holds the sums of the tiles' gradients.
inline void add_bias(const float* z, std::int64_t tiles, std::int64_t rows, float* bias) {
  z += 5 * kTiles * kRowStride;
  for (std::int64_t c = 0; c < rows; c += kLanes) {
    Floats sum = {};
    for (std::int64_t tile = 0; tile < tiles; ++tile) sum += load(z + tile * kRowStride + c);
    store(bias + c, load(bias + c) + sum);
  }
}

// ---- G^T U G ----

FASTDIFF_INLINE void gather(const Floats (&u)[4], Floats (&to)[3]) {
  const Floats even = (u[1] + u[2]) * 0.5f;
  to[0] = u[0] + even;
  to[1] = (u[1] - u[2]) * 0.5f;
  to[2] = even + u[3];
}

inline void finish(const Conv3x3GradientParams& p, const Range& outs, const Range& ins,
                   const float* u, const float* bias) {
  const std::int64_t position = outs.size() * kMostColumns;
  for (std::int64_t o = outs.first; o < outs.last; ++o, u += kMostColumns) {
    float* weight = p.weight + o * 9 * p.channels;
    for (std::int64_t c = ins.first; c < ins.last; c += kLanes) {
      const int lanes = lanes_of<kLanes>(ins.last, c);
      Floats half[3][4], taps[3];
      for (int j = 0; j < 4; ++j) {
        Floats column[4];
        for (int i = 0; i < 4; ++i) column[i] = load(u + (4 * i + j) * position + c - ins.first);
        gather(column, taps);
        for (int i = 0; i < 3; ++i) half[i][j] = taps[i];
      }
      for (int i = 0; i < 3; ++i) {
        gather(half[i], taps);
        for (int j = 0; j < 3; ++j) store(weight + (3 * i + j) * p.channels + c, taps[j], lanes);
      }
    }
    if (ins.first == 0) p.bias[o] = bias[o - outs.first];
  }
}

template <class T>
void gradient(const Conv3x3GradientParams& p, const Range& outs, const Range& ins,
              Workspace& space) {
  const std::int64_t rows = outs.size(), u_size = 16 * rows * kMostColumns;
  const std::int64_t most_channels = std::max(p.channels, p.out_channels);
  float* u = space.at_least(kWorkspace + most_channels);
  float* bias = u + u_size;
  float* v = bias + kMostRows;
  float* z = v + 16 * kTiles * kColumnStride;
  float* zeros = z + 16 * kTiles * kRowStride;
  std::fill_n(u, u_size + kMostRows, 0.0f);
  std::fill_n(zeros, most_channels, 0.0f);
  const Range all = all_tiles(p);
  const std::int64_t chain = chain_of(all.size());
  for (std::int64_t first = 0; first < all.last; first += kTiles) {
    const Range tiles{first, std::min(first + kTiles, all.last)};
    transform_x(p, tiles, ins, reinterpret_cast<const T*>(zeros), v);
    transform_gradient(p, tiles, outs, reinterpret_cast<const T*>(zeros), z);
    for (int k = 0; k < 16; ++k) {
      // An upsampled tile repeats its middle row and column, whose difference is zero.
      if (p.upsample && (k / 4 == 2 || k % 4 == 2)) continue;
      add_position(z + k * kTiles * kRowStride, v + k * kTiles * kColumnStride, tiles.size(), chain,
                   rows, ins.size(), u + k * rows * kMostColumns);
    }
    if (ins.first == 0) add_bias(z, tiles.size(), rows, bias);
  }
  finish(p, outs, ins, u, bias);
}

inline Gradient gradient_for(DType dtype) {
  return for_dtype(dtype, [](auto element) -> Gradient { return gradient<decltype(element)>; });
}
