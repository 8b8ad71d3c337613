// What cpu_targets.h compiles for each kind of processor: blocks of positions as products want
// them, and a task's block of the weights.

#include "../common/cpu_matrix_tiles.h"
#include "../common/cpu_transpose.h"

// 32 channels of an image at 32 positions, zeros where there is no such channel or pixel.
struct PositionBlock {
  alignas(64) BFloat16 values[kBlock][kBlock];

  PositionBlock(const Conv3x3GradientParams& p, const Pixels& image, std::int64_t factor,
                std::int64_t block, std::int64_t channel, std::int64_t channels) {
    const Positions positions(p);
    const std::int64_t count = std::min(kBlock, channels - channel);
    const std::int64_t first = block * kBlock, of_all = p.batch * positions.sample;
    std::int64_t sample = first / positions.sample, in_sample = first % positions.sample;
    std::int64_t y = in_sample / positions.width, x = in_sample % positions.width;
    for (std::int64_t i = 0; i < kBlock; ++i) {
      const bool within = first >= 0 && first + i < of_all && y < p.height && x < p.width;
      const auto* from = static_cast<const BFloat16*>(image.data) + channel;
      from += sample * image.sample + y / factor * image.row + x / factor * image.pixel;
      if (within && count == kBlock) {
        std::memcpy(values[i], from, sizeof(values[i]));
      } else {
        std::memset(values[i], 0, sizeof(values[i]));
        if (within) std::memcpy(values[i], from, count * sizeof(BFloat16));
      }
      if (++x < positions.width) continue;
      x = 0;
      if (++y > p.height) y = 0, ++sample;
    }
  }
};

// Where 32 channels of x lie in the copies, from a block of positions on.
inline std::int64_t x_pairs(const Conv3x3GradientParams& p, std::int64_t channels,
                            std::int64_t block) {
  return (channels * Positions(p).blocks + block) * kTileSize;
}

// Where the gradients of 32 output channels do.
inline std::int64_t gradient_rows(const Conv3x3GradientParams& p, std::int64_t channels,
                                  std::int64_t block) {
  const Positions of(p);
  return x_size(p) + channels * kBlock * of.row + (of.margin + block) * kBlock;
}

inline void lay_out(const Conv3x3GradientParams& p, BFloat16* copies, std::int64_t block) {
  const Positions positions(p);
  for (std::int64_t i = 0; i < blocks_of(p.out_channels); ++i) {
    const PositionBlock from(p, p.grad, 1, block, i * kBlock, p.out_channels);
    alignas(64) BFloat16 pairs[2][kTileSize / 2];
    pair_rows(from.values[0], kBlock, pairs[0]);
    BFloat16* const to = copies + gradient_rows(p, i, block);
    for (int half = 0; half < 2; ++half) {
      transpose_16x16(pairs[half], kBlock / 2, to + half * 16 * positions.row, positions.row / 2);
    }
  }
  if (block < 0 || block >= positions.blocks) return;
  for (std::int64_t i = 0; i < blocks_of(p.channels); ++i) {
    const PositionBlock from(p, p.x, p.upsample ? 2 : 1, block, i * kBlock, p.channels);
    pair_rows(from.values[0], kBlock, copies + x_pairs(p, i, block));
  }
}

// sums [32, kLanes] += the gradients of some blocks of positions.
inline void add_to_bias(const BFloat16* rows, std::int64_t stride, std::int64_t blocks,
                        float* sums) {
  for (std::int64_t row = 0; row < kBlock; ++row, rows += stride, sums += kLanes) {
    Floats sum = load(sums);
    for (std::int64_t i = 0; i < blocks * kBlock; i += kLanes) sum += load(rows + i, kLanes);
    store(sums, sum);
  }
}

inline void finish_weights(const Conv3x3GradientParams& p, std::int64_t out, std::int64_t in,
                           int tap, const float* sums) {
  for (std::int64_t o = out * kBlock; o < std::min((out + 1) * kBlock, p.out_channels); ++o) {
    float* const to = p.weight + (o * kTaps + tap) * p.channels;
    for (std::int64_t c = in * kBlock; c < (in + 1) * kBlock; c += kLanes, sums += kLanes) {
      const int lanes = lanes_of<kLanes>(p.channels, c);
      if (lanes > 0) store(to + c, load(sums), lanes);
    }
  }
}

inline void finish_bias(const Conv3x3GradientParams& p, std::int64_t out, const float* sums) {
  for (std::int64_t o = out * kBlock; o < std::min((out + 1) * kBlock, p.out_channels); ++o) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += *sums++;
    p.bias[o] = sum;
  }
}

// sums [32, 32] += rows [32, 32 * steps] pairs [steps, 2, 16, 16, 2]. Meanwhile the next sums and,
// from `ahead` on, a ninth of the next pairs come to the nearest cache.
template <class Tiles>
FASTDIFF_INLINE void add_products(Tiles& unit, const BFloat16* rows, std::int64_t stride,
                                  const BFloat16* pairs, std::int64_t steps, const BFloat16* ahead,
                                  float* sums) {
  constexpr int kLine = 64;
  constexpr int kOfSums = kTileSize * sizeof(float) / kSteps / kLine;
  constexpr int kOfPairs = (kTileSize * sizeof(BFloat16) / kLine + kTaps - 1) / kTaps;
  const float* next_sums = sums + kTileSize;
  unit.template load_from<2>(sums);
  for (std::int64_t i = 0; i < steps; ++i, rows += kBlock, pairs += kTileSize) {
    for (int j = 0; j < kOfSums; ++j, next_sums += kLine / sizeof(float)) {
      __builtin_prefetch(next_sums, 1, 3);
    }
    for (int j = 0; j < kOfPairs; ++j, ahead += kLine / sizeof(BFloat16)) {
      __builtin_prefetch(ahead, 0, 3);
    }
    unit.template multiply_add<2>(rows, rows + 16 * stride, stride, pairs);
  }
  unit.template store_to<2>(sums);
}

template <class Tiles>
void sum_up(const Conv3x3GradientParams& p, const BFloat16* copies, const Range& outs,
            const Range& ins, Workspace& space) {
  const Positions positions(p);
  const std::int64_t of_weights = outs.size() * ins.size() * kTaps * kTileSize;
  const std::int64_t all = of_weights + outs.size() * kBlock * kLanes;
  float* const sums = space.at_least(all);
  std::fill_n(sums, all, 0.0f);
  Tiles unit;
  for (std::int64_t first = 0; first < positions.blocks; first += kSteps) {
    const std::int64_t steps = std::min(kSteps, positions.blocks - first);
    float *to = sums, *bias = sums + of_weights;
    for (std::int64_t out = outs.first; out < outs.last; ++out, bias += kBlock * kLanes) {
      const BFloat16* const rows = copies + gradient_rows(p, out, first);
      if (ins.first == 0) add_to_bias(rows, positions.row, steps, bias);
      for (std::int64_t in = ins.first; in < ins.last; ++in) {
        const BFloat16* const pairs = copies + x_pairs(p, in, first);
        for (int tap = 0; tap < kTaps; ++tap, to += kTileSize) {
          const BFloat16* const ahead =
              copies + x_pairs(p, in + 1, first) + tap * steps * kTileSize / kTaps;
          add_products(unit, rows + positions.distance(tap), positions.row, pairs, steps, ahead,
                       to);
        }
      }
    }
  }
  const float *from = sums, *bias = sums + of_weights;
  for (std::int64_t out = outs.first; out < outs.last; ++out, bias += kBlock * kLanes) {
    for (std::int64_t in = ins.first; in < ins.last; ++in) {
      for (int tap = 0; tap < kTaps; ++tap, from += kTileSize) {
        finish_weights(p, out, in, tap, from);
      }
    }
    if (ins.first == 0) finish_bias(p, out, bias);
  }
}

inline DirectGradient direct_gradient(bool matrix_unit) {
#if FASTDIFF_LEVEL >= 5
  if (matrix_unit) return {lay_out, sum_up<MatrixUnitTiles>};
#endif
  return {lay_out, sum_up<PlainTiles>};
}
