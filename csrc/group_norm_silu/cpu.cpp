// Statistics by tile, merged in a fixed order, so the result does not depend on the threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../common/cpu_vector.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kRunTile = 4096;    // elements of a contiguous group
constexpr std::int64_t kPixelTile = 64;    // pixels of a channels-last sample
constexpr std::int64_t kTaskWork = 16384;  // elements that are worth a thread
constexpr int kUnroll = 4;

// x, or x + residual where `summed`.
template <class T, bool summed>
struct Input {
  const T* x;
  const T* residual;

  FASTDIFF_INLINE Floats load(std::int64_t i, int count = kLanes) const {
    const Floats v = fastdiff::load(x + i, count);
    return summed ? v + fastdiff::load(residual + i, count) : v;
  }
  FASTDIFF_INLINE Input operator+(std::int64_t i) const {
    return {x + i, summed ? residual + i : nullptr};
  }
};

template <class T, bool summed>
FASTDIFF_INLINE Input<T, summed> input(const GroupNormSiluParams& p) {
  return {static_cast<const T*>(p.x), static_cast<const T*>(p.residual)};
}

// Sums of d = x - center over some elements; center is near their mean, so nothing cancels.
struct TileSums {
  float center, d, d_squared;
};

// Mean and variance of many tiles, in float64 about the first tile's center.
struct Moments {
  double origin = 0, count = 0, first = 0, second = 0;

  // `added` is what all elements of the tile are to be raised by.
  FASTDIFF_INLINE void add(const TileSums& tile, double n, double added) {
    if (count == 0) origin = tile.center + added;
    const double offset = tile.d / n;
    const double mean = tile.center + added - origin + offset;
    count += n;
    first += n * mean;
    second += tile.d_squared - tile.d * offset + n * mean * mean;
  }
  double mean() const { return origin + first / count; }
  // Rounding may leave a constant group below zero; NaN stays NaN.
  double variance() const {
    const double centred = second / count - first / count * (first / count);
    return centred < 0 ? 0 : centred;
  }
};

// y = act((x - center) * slope + offset)
struct Affine {
  float center, slope, offset;
};

double entry(const ChannelVector& v, std::int64_t sample, std::int64_t channel, double absent) {
  if (v.data == nullptr) return absent;
  const std::int64_t i = sample * v.sample_stride + channel * v.channel_stride;
  switch (v.dtype) {
    case DType::float32:
      return static_cast<const float*>(v.data)[i];
    case DType::float16:
      return load(static_cast<const Float16*>(v.data) + i, 1)[0];
    default:
      return load(static_cast<const BFloat16*>(v.data) + i, 1)[0];
  }
}

Affine affine(const GroupNormSiluParams& p, std::int64_t sample, std::int64_t channel,
              double group_mean, double rstd) {
  const double mean = group_mean - entry(p.added, sample, channel, 0);
  const double modulation = 1 + entry(p.scale, sample, channel, 0);
  const double slope = modulation * entry(p.weight, 0, channel, 1) * rstd;
  const float center = static_cast<float>(mean);
  const double offset = modulation * entry(p.bias, 0, channel, 0) +
                        entry(p.shift, sample, channel, 0) - slope * (mean - center);
  return {center, static_cast<float>(slope), static_cast<float>(offset)};
}

double keep_statistics(const GroupNormSiluParams& p, std::int64_t slab, const Moments& moments) {
  const double rstd = 1 / std::sqrt(moments.variance() + p.eps);
  p.mean[slab] = static_cast<float>(moments.mean());
  p.rstd[slab] = static_cast<float>(rstd);
  return rstd;
}

template <bool silu_follows>
FASTDIFF_INLINE Floats act(const Floats& z) {
  return silu_follows ? silu(z) : z;
}

// ---- contiguous: a group is one run of memory ----

template <class X>
FASTDIFF_INLINE TileSums run_sums(const X& x, std::int64_t n) {
  const std::int64_t vectors = n / kLanes;
  const int rest = static_cast<int>(n % kLanes);
  Floats totals[kUnroll] = {};
  std::int64_t i = 0;
  for (; i + kUnroll <= vectors; i += kUnroll) {
    for (int k = 0; k < kUnroll; ++k) totals[k] += x.load((i + k) * kLanes);
  }
  for (; i < vectors; ++i) totals[0] += x.load(i * kLanes);
  if (rest) totals[1] += x.load(i * kLanes, rest);
  const Floats center = splat(sum((totals[0] + totals[1]) + (totals[2] + totals[3])) / n);

  Floats d_sums[kUnroll] = {}, squares[kUnroll] = {};
  const auto add = [&](int k, const Floats& d) FASTDIFF_LAMBDA_INLINE {
    d_sums[k] += d;
    squares[k] += d * d;
  };
  for (i = 0; i + kUnroll <= vectors; i += kUnroll) {
    for (int k = 0; k < kUnroll; ++k) add(k, x.load((i + k) * kLanes) - center);
  }
  for (; i < vectors; ++i) add(0, x.load(i * kLanes) - center);
  if (rest) {
    Floats d = x.load(i * kLanes, rest) - center;
    for (int lane = rest; lane < kLanes; ++lane) d[lane] = 0;
    add(1, d);
  }
  return {center[0], sum((d_sums[0] + d_sums[1]) + (d_sums[2] + d_sums[3])),
          sum((squares[0] + squares[1]) + (squares[2] + squares[3]))};
}

template <bool silu_follows, class X, class T>
FASTDIFF_INLINE void run_apply(const X& x, T* y, std::int64_t n, const Affine& a) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(y + i, act<silu_follows>((x.load(i) - a.center) * a.slope + a.offset));
  }
  const int rest = static_cast<int>(n - i);
  if (rest) {
    store(y + i, act<silu_follows>((x.load(i, rest) - a.center) * a.slope + a.offset), rest);
  }
}

template <class T, bool summed>
FASTDIFF_INLINE void slabs(const GroupNormSiluParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t depth = p.channels / p.groups, size = depth * p.spatial;
  for (std::int64_t slab = begin; slab < end; ++slab) {
    const std::int64_t sample = slab / p.groups, first = slab % p.groups * depth;
    const auto x = input<T, summed>(p) + slab * size;
    T* y = static_cast<T*>(p.y) + slab * size;
    Moments moments;
    const std::int64_t run = p.added.data ? p.spatial : size;
    for (std::int64_t start = 0; start < size; start += run) {
      const double added = entry(p.added, sample, first + start / p.spatial, 0);
      for (std::int64_t i = start; i < start + run; i += kRunTile) {
        const std::int64_t n = std::min(kRunTile, start + run - i);
        moments.add(run_sums(x + i, n), static_cast<double>(n), added);
      }
    }
    const double rstd = keep_statistics(p, slab, moments);
    for (std::int64_t c = 0; c < depth; ++c) {
      const Affine a = affine(p, sample, first + c, moments.mean(), rstd);
      const std::int64_t at = c * p.spatial;
      p.silu ? run_apply<true>(x + at, y + at, p.spatial, a)
             : run_apply<false>(x + at, y + at, p.spatial, a);
    }
  }
}

// ---- channels-last: a vector holds neighbouring channels of one pixel ----

// Sums of `width` vectors' channels over `pixels` rows; `lanes` counts the last vector's channels.
template <int width, class X>
FASTDIFF_INLINE void column_sums(const X& x, std::int64_t pixels, std::int64_t row, int lanes,
                                 float* center, float* d_sum, float* square) {
  const auto at = [&](std::int64_t pixel, int k) FASTDIFF_LAMBDA_INLINE {
    return x.load(pixel * row + k * kLanes, width == 1 ? lanes : kLanes);
  };
  Floats centers[width] = {}, d_sums[width] = {}, squares[width] = {};
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int k = 0; k < width; ++k) centers[k] += at(pixel, k);
  }
  for (int k = 0; k < width; ++k) centers[k] /= static_cast<float>(pixels);
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int k = 0; k < width; ++k) {
      const Floats d = at(pixel, k) - centers[k];
      d_sums[k] += d;
      squares[k] += d * d;
    }
  }
  for (int k = 0; k < width; ++k) {
    const int count = width == 1 ? lanes : kLanes;
    store(center + k * kLanes, centers[k], count);
    store(d_sum + k * kLanes, d_sums[k], count);
    store(square + k * kLanes, squares[k], count);
  }
}

// `sums` holds three rows of `channels`: centers, sums and squares.
template <class X>
FASTDIFF_INLINE void pixel_sums(const X& x, std::int64_t pixels, std::int64_t channels,
                                float* sums) {
  float *center = sums, *d_sum = sums + channels, *square = sums + 2 * channels;
  std::int64_t c = 0;
  for (; c + kUnroll * kLanes <= channels; c += kUnroll * kLanes) {
    column_sums<kUnroll>(x + c, pixels, channels, kLanes, center + c, d_sum + c, square + c);
  }
  for (; c < channels; c += kLanes) {
    const int lanes = static_cast<int>(std::min<std::int64_t>(kLanes, channels - c));
    column_sums<1>(x + c, pixels, channels, lanes, center + c, d_sum + c, square + c);
  }
}

template <bool silu_follows, class X, class T>
FASTDIFF_INLINE void pixel_apply(X x, T* y, std::int64_t pixels, std::int64_t channels,
                                 const float* center, const float* slope, const float* offset) {
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    std::int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      const Floats z = (x.load(c) - load(center + c)) * load(slope + c) + load(offset + c);
      store(y + c, act<silu_follows>(z));
    }
    const int rest = static_cast<int>(channels - c);
    if (rest) {
      const Floats d = x.load(c, rest) - load(center + c, rest);
      const Floats z = d * load(slope + c, rest) + load(offset + c, rest);
      store(y + c, act<silu_follows>(z), rest);
    }
    x = x + channels, y += channels;
  }
}

// The tiles of one batch: tile i covers pixels of sample i / per_sample.
struct PixelTiles {
  std::int64_t per_sample, channels, spatial;

  std::int64_t sample(std::int64_t tile) const { return tile / per_sample; }
  std::int64_t first_pixel(std::int64_t tile) const { return tile % per_sample * kPixelTile; }
  std::int64_t pixels(std::int64_t tile) const {
    return std::min(kPixelTile, spatial - first_pixel(tile));
  }
  std::int64_t element(std::int64_t tile) const {
    return (sample(tile) * spatial + first_pixel(tile)) * channels;
  }
};

template <class T, bool summed>
FASTDIFF_INLINE void sum_tiles(const GroupNormSiluParams& p, const PixelTiles& tiles, float* sums,
                               std::int64_t begin, std::int64_t end) {
  for (std::int64_t tile = begin; tile < end; ++tile) {
    pixel_sums(input<T, summed>(p) + tiles.element(tile), tiles.pixels(tile), p.channels,
               sums + tile * 3 * p.channels);
  }
}

// Turns the tiles' sums of one sample into its channels' three affine rows.
void merge_tiles(const GroupNormSiluParams& p, const PixelTiles& tiles, const float* sums,
                 float* affines, std::int64_t sample) {
  const std::int64_t C = p.channels, depth = C / p.groups;
  for (std::int64_t group = 0; group < p.groups; ++group) {
    Moments moments;
    for (std::int64_t i = 0; i < tiles.per_sample; ++i) {
      const std::int64_t tile = sample * tiles.per_sample + i;
      const float* row = sums + tile * 3 * C;
      for (std::int64_t c = group * depth; c < (group + 1) * depth; ++c) {
        moments.add({row[c], row[C + c], row[2 * C + c]}, static_cast<double>(tiles.pixels(tile)),
                    entry(p.added, sample, c, 0));
      }
    }
    const double rstd = keep_statistics(p, sample * p.groups + group, moments);
    float* row = affines + sample * 3 * C;
    for (std::int64_t c = group * depth; c < (group + 1) * depth; ++c) {
      const Affine a = affine(p, sample, c, moments.mean(), rstd);
      row[c] = a.center, row[C + c] = a.slope, row[2 * C + c] = a.offset;
    }
  }
}

template <class T, bool summed>
FASTDIFF_INLINE void apply_tiles(const GroupNormSiluParams& p, const PixelTiles& tiles,
                                 const float* affines, std::int64_t begin, std::int64_t end) {
  const std::int64_t C = p.channels;
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const auto x = input<T, summed>(p) + tiles.element(tile);
    T* y = static_cast<T*>(p.y) + tiles.element(tile);
    const float* row = affines + tiles.sample(tile) * 3 * C;
    const std::int64_t pixels = tiles.pixels(tile);
    p.silu ? pixel_apply<true>(x, y, pixels, C, row, row + C, row + 2 * C)
           : pixel_apply<false>(x, y, pixels, C, row, row + C, row + 2 * C);
  }
}

// ---- one clone a dtype and processor, chosen by the loader ----

#define FASTDIFF_DEFINE_KERNELS(T)                                                            \
  FASTDIFF_CPU_CLONES void slabs_##T(const GroupNormSiluParams& p, std::int64_t begin,        \
                                     std::int64_t end) {                                      \
    p.residual ? slabs<T, true>(p, begin, end) : slabs<T, false>(p, begin, end);              \
  }                                                                                           \
  FASTDIFF_CPU_CLONES void sum_tiles_##T(const GroupNormSiluParams& p, const PixelTiles& t,   \
                                         float* sums, std::int64_t begin, std::int64_t end) { \
    p.residual ? sum_tiles<T, true>(p, t, sums, begin, end)                                   \
               : sum_tiles<T, false>(p, t, sums, begin, end);                                 \
  }                                                                                           \
  FASTDIFF_CPU_CLONES void apply_tiles_##T(const GroupNormSiluParams& p, const PixelTiles& t, \
                                           const float* affines, std::int64_t begin,          \
                                           std::int64_t end) {                                \
    p.residual ? apply_tiles<T, true>(p, t, affines, begin, end)                              \
               : apply_tiles<T, false>(p, t, affines, begin, end);                            \
  }
FASTDIFF_DEFINE_KERNELS(float)
FASTDIFF_DEFINE_KERNELS(Float16)
FASTDIFF_DEFINE_KERNELS(BFloat16)
#undef FASTDIFF_DEFINE_KERNELS

struct Kernels {
  decltype(&slabs_float) slabs;
  decltype(&sum_tiles_float) sum_tiles;
  decltype(&apply_tiles_float) apply_tiles;
};

Kernels kernels_for(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return {slabs_float, sum_tiles_float, apply_tiles_float};
    case DType::float16:
      return {slabs_Float16, sum_tiles_Float16, apply_tiles_Float16};
    default:
      return {slabs_BFloat16, sum_tiles_BFloat16, apply_tiles_BFloat16};
  }
}

template <class F>
void parallel(std::int64_t tasks, std::int64_t elements_per_task, const F& f) {
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskWork / elements_per_task);
  torch::stable::parallel_for(0, tasks, grain, f);
}

void channels_last(const GroupNormSiluParams& p, const Kernels& kernels) {
  const std::int64_t C = p.channels;
  const PixelTiles tiles{(p.spatial + kPixelTile - 1) / kPixelTile, C, p.spatial};
  const std::int64_t count = p.batch * tiles.per_sample;
  const std::unique_ptr<float[]> sums(new float[count * 3 * C]);
  const std::unique_ptr<float[]> affines(new float[p.batch * 3 * C]);
  const auto merge = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) merge_tiles(p, tiles, sums.get(), affines.get(), n);
  };
  if (p.batch >= torch::stable::get_num_threads()) {  // a sample stays in its thread's cache
    parallel(p.batch, C * p.spatial, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        const std::int64_t first = n * tiles.per_sample, last = first + tiles.per_sample;
        kernels.sum_tiles(p, tiles, sums.get(), first, last);
        merge(n, n + 1);
        kernels.apply_tiles(p, tiles, affines.get(), first, last);
      }
    });
    return;
  }
  parallel(count, C * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    kernels.sum_tiles(p, tiles, sums.get(), begin, end);
  });
  merge(0, p.batch);
  parallel(count, C * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    kernels.apply_tiles(p, tiles, affines.get(), begin, end);
  });
}

}  // namespace

void group_norm_silu_cpu(const GroupNormSiluParams& p) {
  const Kernels kernels = kernels_for(p.dtype);
  if (p.channels_last) return channels_last(p, kernels);
  parallel(p.batch * p.groups, p.channels / p.groups * p.spatial,
           [&](std::int64_t begin, std::int64_t end) { kernels.slabs(p, begin, end); });
}

}  // namespace fastdiff
