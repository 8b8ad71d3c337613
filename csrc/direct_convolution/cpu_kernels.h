// What cpu_targets.h compiles for each kind of processor: an image with its border, and a panel of
// output channels from it.

#include "../common/cpu_matrix_tiles.h"

// Row `row` of a sample's bordered image, zeros where x has none.
inline void border_row(const DirectConvolutionParams& p, std::int64_t sample, std::int64_t row,
                       BFloat16* to) {
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

// Where a panel's output of some tiles goes, and what is added to it; null for what is in the
// border.
struct Places {
  static constexpr int kCount = 2 * kTileRows;
  BFloat16* y[kCount] = {};
  const BFloat16* residual[kCount] = {};

  Places(const DirectConvolutionParams& p, const Bordered& image, std::int64_t sample,
         std::int64_t panel, const Range& tiles) {
    for (std::int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const std::int64_t position = image.position(tile), at = (tile - tiles.first) * kTileRows;
      std::int64_t row = position / image.width, x = position % image.width;
      for (std::int64_t i = at; i < at + kTileRows && row < p.height; ++i, ++x) {
        if (x == image.width) x = 0, ++row;
        if (x < p.width && row < p.height) set(i, p, sample, panel * kTileColumns, row, x);
      }
    }
  }

 private:
  void set(std::int64_t i, const DirectConvolutionParams& p, std::int64_t sample,
           std::int64_t channel, std::int64_t row, std::int64_t x) {
    const std::int64_t pixel = (sample * p.height + row) * p.width + x;
    y[i] = static_cast<BFloat16*>(p.y) + pixel * p.out_channels + channel;
    if (p.residual.data == nullptr) return;
    residual[i] = static_cast<const BFloat16*>(p.residual.data) + sample * p.residual.sample +
                  row * p.residual.row + x * p.residual.pixel + channel;
  }
};

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

// A panel's bias, and how many channels of each vector it has.
struct Finish {
  static constexpr int kVectors = kTileColumns / kLanes;
  Floats bias[kVectors];
  int lanes[kVectors];
  float scale;

  Finish(const DirectConvolutionParams& p, std::int64_t panel) : scale(p.scale) {
    for (int j = 0; j < kVectors; ++j) {
      const std::int64_t channel = panel * kTileColumns + j * kLanes;
      lanes[j] = lanes_of<kLanes>(p.out_channels, channel);
      const auto* from = static_cast<const BFloat16*>(p.bias) + channel;
      bias[j] = p.bias && lanes[j] > 0 ? load(from, lanes[j]) : splat(0);
    }
  }
  void operator()(const Places& places, const float* sums) const {
    for (int i = 0; i < Places::kCount; ++i, sums += kTileColumns) {
      if (places.y[i] == nullptr) continue;
      for (int j = 0; j < kVectors && lanes[j] > 0; ++j) {
        Floats value = load(sums + j * kLanes) + bias[j];
        if (places.residual[i]) value += load(places.residual[i] + j * kLanes, lanes[j]);
        store(places.y[i] + j * kLanes, value * scale, lanes[j]);
      }
    }
  }
};

template <int kernel, class Tiles>
void convolve_panel(const DirectConvolutionParams& p, std::int64_t sample, std::int64_t panel,
                    const Range& tiles, const BFloat16* image) {
  const Bordered bordered(p);
  const int steps = static_cast<int>(bordered.channels / kTileDepth) * kernel * kernel;
  const std::int64_t size = std::int64_t{steps} * kTileDepth * kTileColumns;
  const auto* weights = static_cast<const BFloat16*>(p.packed) + panel * size;
  const std::int64_t pairs = divide_up(tiles.size(), 2);
  const bool last = (panel + 1) * kTileColumns >= p.out_channels;
  const int lines = last ? 0 : static_cast<int>(divide_up(kTileColumns, pairs));
  const int rows_of_step = (Places::kCount + steps - 1) / steps;
  const char* ahead = reinterpret_cast<const char*>(weights + size);
  alignas(64) float sums[Places::kCount * kTileColumns];
  const Finish finish(p, panel);
  Tiles unit;
  for (std::int64_t tile = tiles.first; tile < tiles.last; tile += 2) {
    const Range pair{tile, std::min(tile + 2, tiles.last)};
    const Places places(p, bordered, sample, panel, pair);
    // What is written comes to the nearest cache meanwhile, the next panel to the second.
    const auto beside = [&](int i) FASTDIFF_LAMBDA_INLINE {
      for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      const int after = std::min((i + 1) * rows_of_step, Places::kCount);
      for (int row = i * rows_of_step; row < after; ++row) {
        __builtin_prefetch(places.y[row], 1, 3);
        __builtin_prefetch(places.residual[row], 0, 3);
      }
    };
    const BFloat16* const a[2] = {image + bordered.position(tile) * bordered.pixel,
                                  image + bordered.position(pair.last - 1) * bordered.pixel};
    if (pair.size() == 2) {
      products<2, kernel>(unit, bordered, a, weights, sums, beside);
    } else {
      products<1, kernel>(unit, bordered, a, weights, sums, beside);
    }
    finish(places, sums);
  }
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
