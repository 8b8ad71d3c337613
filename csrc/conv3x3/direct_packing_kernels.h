// What cpu_targets.h compiles for each kind of processor: one pixel of a block's kernels, in the
// order in which they lie in memory.

#include "../common/cpu_matrix_tiles.h"
#include "../common/cpu_transpose.h"

FASTDIFF_INLINE Floats some_weights(const float* from, std::int64_t stride, int count) {
  constexpr int kAhead = 2048 / sizeof(float);  // what is asked for that early comes twice as fast
  if (stride == 1 && count == kLanes) {
    __builtin_prefetch(from + kAhead);
    return load(from);
  }
  Floats weights = {};
  for (int i = 0; i < count; ++i) weights[i] = from[i * stride];
  return weights;
}

// to [32, 32] = some weights by their strides; zeros beyond `rows` and `columns`.
inline void copy_block(const float* from, std::int64_t row_stride, std::int64_t rows,
                       std::int64_t column_stride, std::int64_t columns, BFloat16* to) {
  for (std::int64_t row = 0; row < kBlock; ++row, from += row_stride) {
    for (std::int64_t column = 0; column < kBlock; column += kLanes, to += kLanes) {
      const int count = row < rows ? lanes_of<kLanes>(columns, column) : 0;
      store(to, some_weights(from + column * column_stride, column_stride, count));
    }
  }
}

// Of block `outer` of those columns or rows that lie farther apart, all blocks of the others.
inline void pack_pixel(const PackParams& p, std::int64_t outer, int tap) {
  const bool together = rows_lie_together(p);
  const std::int64_t blocks = blocks_of(p.rows);
  for (std::int64_t inner = 0; inner < blocks_of(together ? p.rows : p.columns); ++inner) {
    const std::int64_t panel = together ? outer : inner, block = together ? inner : outer;
    const std::int64_t column = panel * kBlock, row = block * kBlock;
    const float* const from = p.weight + column * p.column_stride + row * p.row_stride +
                              tap / 3 * p.y_stride + tap % 3 * p.x_stride;
    BFloat16* const to =
        static_cast<BFloat16*>(p.packed) + ((panel * blocks + block) * kTaps + tap) * kTileSize;
    alignas(64) BFloat16 values[kTileSize];
    if (together) {
      copy_block(from, p.column_stride, p.columns - column, p.row_stride, p.rows - row, values);
      transpose_16x16(values, kBlock / 2, to, 16);
      transpose_16x16(values + kTileSize / 2, kBlock / 2, to + kTileSize / 2, 16);
    } else {
      copy_block(from, p.row_stride, p.rows - row, p.column_stride, p.columns - column, values);
      pair_rows(values, kBlock, to);
    }
  }
}
