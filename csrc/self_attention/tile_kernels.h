// Attention by products of bfloat16 matrices, as tiles of cpu_matrix_tiles.h lie; included within a
// namespace.

#include "../common/cpu_matrix_tiles.h"

// sums [32, 32] = a b, for tiles a [steps, 32, 32] and b [steps, 2, 16, 16, 2].
template <class Tiles>
FASTDIFF_INLINE void multiply_tiles(Tiles& unit, const BFloat16* a, const BFloat16* b,
                                    std::int64_t steps, float* sums) {
  unit.template zero<2>();
  for (std::int64_t i = 0; i < steps; ++i, a += kTileSize, b += kTileSize) {
    if (i % kAwake == kAwake - 1) unit.stay_awake();
    unit.template multiply_add<2>(a, a + kTileSize / 2, kTileDepth, b);
  }
  unit.template store_to<2>(sums);
}

// Keys are tiles [key panels, depths, 2, 16, 16, 2], values [value panels, key panels, ...]; both
// are filled up with zeros.
template <class Tiles>
struct TileHeads {
  static std::int64_t key_panels(const SelfAttentionParams& p) {
    return divide_up(p.tokens, kPanel);
  }
  static std::int64_t depths(const SelfAttentionParams& p) {
    return divide_up(p.head_channels, kPanel);
  }
  static std::int64_t floats_of(std::int64_t tiles) { return tiles * kTileSize / 2; }

  static std::int64_t packed_size(const SelfAttentionParams& p) {
    return floats_of(2 * key_panels(p) * depths(p));
  }
  static std::int64_t scratch_size(const SelfAttentionParams& p) {
    return floats_of(depths(p) + key_panels(p)) + (key_panels(p) + 1) * kTileSize;
  }

  // [32, 32] of q, k or v where it lies; a copy where the head has less, which zeros fill up, or
  // where its rows are no whole number of pairs apart.
  struct Block {
    const BFloat16* data;
    std::int64_t stride;
    alignas(64) BFloat16 filled[kTileSize];

    Block(const SelfAttentionParams& p, const Tokens& of, std::int64_t head, std::int64_t token,
          std::int64_t channel)
        : data(head_of<BFloat16>(p, of, head, token) + channel), stride(of.token) {
      const std::int64_t rows = std::min<std::int64_t>(kTileDepth, p.tokens - token);
      const std::int64_t columns = std::min<std::int64_t>(kTileColumns, p.head_channels - channel);
      if (rows == kTileDepth && columns == kTileColumns && stride % 2 == 0) return;
      std::memset(filled, 0, sizeof(filled));
      for (std::int64_t row = 0; row < rows; ++row) {
        std::memcpy(filled + row * kTileColumns, data + row * stride, columns * sizeof(BFloat16));
      }
      data = filled, stride = kTileColumns;
    }
  };

  static void pack(const SelfAttentionParams& p, std::int64_t head, std::int64_t panel,
                   float* packed) {
    auto* const keys = reinterpret_cast<BFloat16*>(packed);
    BFloat16* const values = keys + key_panels(p) * depths(p) * kTileSize;
    for (std::int64_t i = 0; i < depths(p); ++i) {
      const Block k(p, p.k, head, panel * kPanel, i * kTileDepth);
      BFloat16* const to = keys + (panel * depths(p) + i) * kTileSize;
      transpose_16x16(k.data, k.stride / 2, to, 16);
      transpose_16x16(k.data + 16 * k.stride, k.stride / 2, to + kTileSize / 2, 16);
      const Block v(p, p.v, head, panel * kPanel, i * kTileColumns);
      pair_rows(v.data, v.stride, values + (i * key_panels(p) + panel) * kTileSize);
    }
  }

  static void attend(const SelfAttentionParams& p, std::int64_t head, const Range& queries,
                     const float* packed, float* scratch) {
    const std::int64_t depth = depths(p), panels = key_panels(p);
    const auto* const keys = reinterpret_cast<const BFloat16*>(packed);
    const BFloat16* const values = keys + panels * depth * kTileSize;
    float* const scores = scratch;                                  // [panels, 32, 32]
    float* const sums = scores + panels * kTileSize;                // [32, 32]
    auto* const q = reinterpret_cast<BFloat16*>(sums + kTileSize);  // [depth, 32, 32]
    BFloat16* const weights = q + depth * kTileSize;                // [panels, 32, 32]
    for (std::int64_t i = 0; i < depth; ++i) {
      const Block block(p, p.q, head, queries.first, i * kTileDepth);
      for (int row = 0; row < kTileDepth; ++row) {
        std::memcpy(q + i * kTileSize + row * kTileDepth, block.data + row * block.stride,
                    kTileDepth * sizeof(BFloat16));
      }
    }
    Tiles unit;
    Softmax softmax(p, kQueries);
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      float* const of_panel = scores + panel * kTileSize;
      multiply_tiles(unit, q, keys + panel * depth * kTileSize, depth, of_panel);
      softmax.add_panel(panel, of_panel);
    }
    softmax.all_are_added();
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      unit.stay_awake();
      BFloat16* const to = weights + panel * kTileSize;
      const auto put = [&](int row, const Floats* of_row) FASTDIFF_LAMBDA_INLINE {
        for (int j = 0; j < kVectors; ++j) store(to + row * kTileDepth + j * kLanes, of_row[j]);
      };
      softmax.weigh<BFloat16>(scores + panel * kTileSize, put);
    }
    softmax.all_are_weighed();
    for (std::int64_t i = 0; i < depth; ++i) {
      multiply_tiles(unit, weights, values + i * panels * kTileSize, panels, sums);
      store_mixed<BFloat16>(p, head, queries, i, sums, softmax);
    }
  }
};
