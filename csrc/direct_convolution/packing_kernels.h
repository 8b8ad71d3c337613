// What cpu_targets.h compiles for each kind of processor: one pixel of the kernels of 32 output
// channels.

#include "../common/cpu_matrix_tiles.h"
#include "../common/cpu_transpose.h"

// The weights to count - 1 of a row; zeros beyond.
FASTDIFF_INLINE Floats weights_of(const float* from, std::int64_t stride, int count) {
  constexpr int kAhead = 2048 / sizeof(float);  // where rows are long, memory is asked that early
  if (stride == 1 && count == kLanes) {
    __builtin_prefetch(from + kAhead);
    return load(from);
  }
  Floats weights = {};
  for (int i = 0; i < count; ++i) weights[i] = from[i * stride];
  return weights;
}

// [32 output channels, 32 input channels]; zeros beyond the last ones.
struct KernelPixel {
  alignas(64) BFloat16 values[kBlock][kBlock];

  KernelPixel(const TilePackParams& p, std::int64_t out, std::int64_t in, int tap) {
    const float* from = p.weight + tap / 3 * p.y_stride + tap % 3 * p.x_stride +
                        out * kBlock * p.out_stride + in * kBlock * p.in_stride;
    for (std::int64_t row = 0; row < kBlock; ++row, from += p.out_stride) {
      const bool is_there = out * kBlock + row < p.out_channels;
      for (std::int64_t c = 0; c < kBlock; c += kLanes) {
        const int count = is_there ? lanes_of<kLanes>(p.channels, in * kBlock + c) : 0;
        store(values[row] + c, weights_of(from + c * p.in_stride, p.in_stride, count));
      }
    }
  }
};

inline void pack_pixel(const TilePackParams& p, std::int64_t out, int tap) {
  const std::int64_t blocks = p.blocks()[1];
  for (std::int64_t in = 0; in < blocks_of(p.channels); ++in) {
    const KernelPixel pixel(p, out, in, tap);
    const std::int64_t panel = p.turned ? in : out, block = p.turned ? out : in;
    const std::int64_t tile = (panel * blocks + block) * kTaps + (p.turned ? kTaps - 1 - tap : tap);
    BFloat16* const to = static_cast<BFloat16*>(p.packed) + tile * kTileSize;
    if (p.turned) {
      pair_rows(pixel.values[0], kBlock, to);
    } else {
      transpose_16x16(pixel.values[0], kBlock / 2, to, 16);
      transpose_16x16(pixel.values[16], kBlock / 2, to + kTileSize / 2, 16);
    }
  }
}
