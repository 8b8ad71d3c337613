// What cpu_targets.h compiles for each kind of processor: an image with its border, and a panel of
// output channels from it.

#include "../common/cpu_matrix_tiles.h"

inline void patch_row(const DirectConvolutionParams& p, std::int64_t sample, std::int64_t row,
                      BFloat16* to) {
  const Bordered image(p);
  const auto* from = static_cast<const BFloat16*>(p.x.data) + sample / p.blocks * p.x.sample;
  row += sample % p.blocks * p.height;
  for (std::int64_t x = 0; x < p.width; ++x, to += image.pixel) {
    copy_patch(p.patches, p.x, from, row, x, to);
    std::fill(to + p.channels, to + image.channels, BFloat16{});
  }
}

// Row `row` of a sample's bordered image, zeros where x has none.
inline void border_row(const DirectConvolutionParams& p, std::int64_t sample, std::int64_t row,
                       BFloat16* to) {
  if (p.patches.channels > 0) return patch_row(p, sample, row, to);
  const Bordered image(p);
  const std::int64_t border = p.kernel / 2, y = row - border, factor = p.upsample ? 2 : 1;
  const auto zero = [&](std::int64_t from, std::int64_t count) {
    std::memset(to + from, 0, count * sizeof(BFloat16));
  };
  if (y < 0 || y >= p.height) return zero(0, image.row());
  const BFloat16* from =
      static_cast<const BFloat16*>(p.x.data) + sample * p.x.sample + y / factor * p.x.row;
  for (std::int64_t x = -border; x < p.width + border; ++x, to += image.pixel) {
    if (x < 0 || x >= p.width) {
      zero(0, image.channels);
      continue;
    }
    std::memcpy(to, from + x / factor * p.x.pixel, p.channels * sizeof(BFloat16));
    if (image.channels > p.channels) zero(p.channels, image.channels - p.channels);
  }
}

// Sums of one or two tiles of positions, from a[0] and a[1] on, of a panel; beside(i) is called
// beside product i.
template <int rows, int kernel, class Tiles, class Beside>
FASTDIFF_INLINE void products(Tiles& tiles, const Bordered& image, const BFloat16* const (&a)[2],
                              const BFloat16* weights, float* sums, const Beside& beside) {
  tiles.template zero<rows>();
  int i = 0;
  for (std::int64_t c = 0; c < image.channels; c += kTileDepth) {
    for (std::int64_t dy = 0; dy < kernel; ++dy) {
      for (std::int64_t dx = 0; dx < kernel; ++dx, weights += kTileDepth * kTileColumns) {
        beside(i);
        if (++i % kAwake == 0) tiles.stay_awake();
        const std::int64_t at = (dy * image.width + dx) * image.pixel + c;
        tiles.template multiply_add<rows>(a[0] + at, a[1] + at, image.pixel, weights);
      }
    }
  }
  tiles.template store_to<rows>(sums);
}

// Writes a panel's output from its sums, one position after another; those in the border are left.
class Output {
  static constexpr int kVectors = kTileColumns / kLanes;
  const std::int64_t width_, height_, to_next_row_, to_next_pixel_;
  const Pixels added_;
  const float scale_;
  Floats bias_[kVectors];
  int lanes_[kVectors];
  std::int64_t row_, x_;
  BFloat16* y_;
  const BFloat16* residual_;

  FASTDIFF_INLINE void write(const float* sums) {
    for (int j = 0; j < kVectors && lanes_[j] > 0; ++j) {
      Floats value = load(sums + j * kLanes) + bias_[j];
      if (residual_) value += load(residual_ + j * kLanes, lanes_[j]);
      store(y_ + j * kLanes, value * scale_, lanes_[j]);
    }
    y_ += to_next_pixel_;
    if (residual_) residual_ += x_ + 1 < width_ ? added_.pixel : added_.row - x_ * added_.pixel;
  }

 public:
  // From position `first` of the bordered image on.
  Output(const DirectConvolutionParams& p, const Bordered& image, std::int64_t sample,
         std::int64_t panel, std::int64_t first)
      : width_(p.width),
        height_(p.height),
        to_next_row_(image.tiles_of_row ? p.width : image.width),
        to_next_pixel_(p.out_channels),
        added_(p.residual),
        scale_(p.scale),
        row_(first / image.width),
        x_(first % image.width) {
    const std::int64_t channels = panel * kTileColumns;
    for (int j = 0; j < kVectors; ++j) {
      lanes_[j] = lanes_of<kLanes>(p.out_channels, channels + j * kLanes);
      const auto* from = static_cast<const BFloat16*>(p.bias) + channels + j * kLanes;
      bias_[j] = p.bias && lanes_[j] > 0 ? load(from, lanes_[j]) : splat(0);
    }
    // In the border the next pixel is the next row's first.
    const std::int64_t row = x_ < width_ ? row_ : row_ + 1, x = x_ < width_ ? x_ : 0;
    const std::int64_t pixel = (sample * height_ + row) * width_ + x;
    y_ = static_cast<BFloat16*>(p.y) + pixel * p.out_channels + channels;
    residual_ = static_cast<const BFloat16*>(added_.data);
    if (residual_) {
      residual_ += sample * added_.sample + row * added_.row + x * added_.pixel + channels;
    }
  }
  FASTDIFF_INLINE void operator()(const float* sums, int positions) {
    for (int i = 0; i < positions; ++i, sums += kTileColumns) {
      if (x_ < width_ && row_ < height_) write(sums);
      if (++x_ == to_next_row_) x_ = 0, ++row_;
    }
  }
};

// `next`: the panel after this one is wanted next.
template <int kernel, class Tiles>
void convolve_panel(const DirectConvolutionParams& p, std::int64_t sample, std::int64_t panel,
                    const Range& tiles, const BFloat16* image, bool next) {
  constexpr int kPositions = 2 * kTileRows;
  const Bordered bordered(p);
  const int steps = static_cast<int>(bordered.channels / kTileDepth) * kernel * kernel;
  const std::int64_t size = std::int64_t{steps} * kTileDepth * kTileColumns;
  const auto* weights = static_cast<const BFloat16*>(p.packed) + panel * size;
  const std::int64_t pairs = divide_up(tiles.size(), 2);
  const int lines = next ? static_cast<int>(divide_up(kTileColumns, pairs)) : 0;
  const int by_step = (kPositions + steps - 1) / steps;
  const char* ahead = reinterpret_cast<const char*>(weights + size);
  alignas(64) float sums[2][kPositions * kTileColumns];
  Output output(p, bordered, sample, panel, bordered.position(tiles.first));
  Tiles unit;
  int turn = 0;
  for (std::int64_t tile = tiles.first; tile < tiles.last; tile += 2, turn = 1 - turn) {
    const std::int64_t second = std::min(tile + 1, tiles.last - 1);
    // The sums before these are written meanwhile, and the next panel's weights come nearer.
    const auto beside = [&](int i) FASTDIFF_LAMBDA_INLINE {
      for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      const int first = i * by_step;
      if (tile == tiles.first || first >= kPositions) return;
      output(sums[1 - turn] + first * kTileColumns, std::min(by_step, kPositions - first));
    };
    const BFloat16* const a[2] = {image + bordered.position(tile) * bordered.pixel,
                                  image + bordered.position(second) * bordered.pixel};
    if (second > tile) {
      products<2, kernel>(unit, bordered, a, weights, sums[turn], beside);
    } else {
      products<1, kernel>(unit, bordered, a, weights, sums[turn], beside);
    }
  }
  output(sums[1 - turn], tiles.size() % 2 ? kTileRows : kPositions);
}

template <class Tiles>
Direct direct_of(int kernel) {
  return {border_row, kernel == 1 ? convolve_panel<1, Tiles> : convolve_panel<3, Tiles>};
}

inline Direct direct(int kernel, bool matrix_unit) {
#if FASTDIFF_LEVEL >= 5
  if (matrix_unit) return direct_of<MatrixUnitTiles>(kernel);
#endif
  return direct_of<PlainTiles>(kernel);
}
