// What cpu_targets.h compiles for each kind of processor: sums, merge and output of both layouts.
// A center is one of the data's own values, so x - center is exact where the spread is small.

#include "cpu_channels.h"

// The middle one of three; no lone outlier becomes a center.
FASTDIFF_INLINE Floats median(const Floats& a, const Floats& b, const Floats& c) {
  return larger(smaller(a, b), smaller(larger(a, b), c));
}

template <class T, bool silu_follows>
FASTDIFF_INLINE Floats act(const Floats& z) {
  return silu_follows ? divided<T>(z, sigmoid_denominator<T>(z)) : z;
}

inline double keep_statistics(const GroupNormSiluParams& p, std::int64_t slab, double mean,
                              double variance) {
  // Rounding may leave a constant group below zero; NaN stays NaN.
  const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + p.eps);
  if (p.mean) p.mean[slab] = static_cast<float>(mean);
  if (p.rstd) p.rstd[slab] = static_cast<float>(rstd);
  return rstd;
}

// ---- contiguous: a group is one run of memory ----

template <class X>
FASTDIFF_INLINE TileSums run_sums(const X& x, std::int64_t n) {
  constexpr int kChains = 4;
  constexpr std::int64_t kRun = 16 * kChains * kLanes;  // longer sums round more
  const Floats middle = median(x.load_at(0, 1), x.load_at(n / 2, 1), x.load_at(n - 1, 1));
  const Floats center = splat(middle[0]);
  Floats d_sum{}, square_sum{};
  for (std::int64_t first = 0; first < n; first += kRun) {
    const std::int64_t last = std::min(first + kRun, n);
    Floats d_sums[kChains] = {}, squares[kChains] = {};
    const auto add = [&](int k, const Floats& d) FASTDIFF_LAMBDA_INLINE {
      d_sums[k] += d;
      squares[k] += d * d;
    };
    std::int64_t i = first;
    for (; i + kChains * kLanes <= last; i += kChains * kLanes) {
      for (int k = 0; k < kChains; ++k) add(k, x.load_at(i + k * kLanes) - center);
    }
    for (; i < last; i += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, last - i));
      Floats d = x.load_at(i, count) - center;
      for (int lane = count; lane < kLanes; ++lane) d[lane] = 0;
      add(0, d);
    }
    d_sum += (d_sums[0] + d_sums[1]) + (d_sums[2] + d_sums[3]);
    square_sum += (squares[0] + squares[1]) + (squares[2] + squares[3]);
  }
  return {center[0], sum(d_sum), sum(square_sum)};
}

template <bool silu_follows, class X>
FASTDIFF_INLINE void run_output(const X& x, typename X::Element* y, std::int64_t n, float center,
                                float slope, float offset) {
  using T = typename X::Element;
  const auto at = [&](std::int64_t i, int count) FASTDIFF_LAMBDA_INLINE {
    const Floats z = (x.load_at(i, count) - center) * slope + offset;
    store(y + i, act<T, silu_follows>(z), count);
  };
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) at(i, kLanes);
  if (i < n) at(i, static_cast<int>(n - i));
}

template <class X>
FASTDIFF_INLINE Moments slab_moments(const X& x, const float* added, std::int64_t spatial,
                                     std::int64_t run, std::int64_t size) {
  Moments moments;
  for (std::int64_t start = 0; start < size; start += run) {
    for (std::int64_t i = start; i < start + run; i += kRunTile) {
      const std::int64_t n = std::min(kRunTile, start + run - i);
      moments.add(run_sums(x + i, n), static_cast<double>(n), added[start / spatial]);
    }
  }
  return moments;
}

template <class T, bool summed>
void slabs(const GroupNormSiluParams& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t depth = p.channels / p.groups, size = depth * p.spatial;
  const Rows rows(depth);
  for (std::int64_t slab = begin; slab < end; ++slab) {
    const std::int64_t sample = slab / p.groups;
    const Channels channels{slab % p.groups * depth, depth};
    const auto x = input<T, summed>(p) + slab * size;
    T* y = static_cast<T*>(p.y) + slab * size;
    fill(p.added, sample, channels, 0, rows.added);
    const std::int64_t run = p.added.data ? p.spatial : size;
    const Moments moments = slab_moments(x, rows.added, p.spatial, run, size);
    std::fill_n(rows.mean, depth, moments.mean());
    std::fill_n(rows.rstd, depth, keep_statistics(p, slab, moments.mean(), moments.variance()));
    const Coefficients by_channel = rows.coefficients;
    coefficients(p, sample, channels, rows, by_channel);
    for (std::int64_t c = 0; c < depth; ++c) {
      const std::int64_t at = c * p.spatial;
      const float center = by_channel.center[c], slope = by_channel.slope[c];
      p.silu ? run_output<true>(x + at, y + at, p.spatial, center, slope, by_channel.offset[c])
             : run_output<false>(x + at, y + at, p.spatial, center, slope, by_channel.offset[c]);
    }
  }
}

// ---- channels-last: a vector holds neighbouring channels of one pixel ----

template <class T, bool summed>
void centers(const GroupNormSiluParams& p, std::int64_t sample, float* center) {
  const std::int64_t C = p.channels;
  const auto x = input<T, summed>(p) + sample * p.spatial * C;
  const std::int64_t middle = p.spatial / 2 * C, last = (p.spatial - 1) * C;
  by_channels<kWide>(C, [&](std::int64_t c, auto width, int lanes) FASTDIFF_LAMBDA_INLINE {
    for (int k = 0; k < width; ++k, c += kLanes) {
      store(center + c,
            median(x.load_at(c, lanes), x.load_at(middle + c, lanes), x.load_at(last + c, lanes)),
            lanes);
    }
  });
}

// `sums` holds two rows of channels: of d = x - center, and of d * d.
template <class T, bool summed>
void sum_tile(const GroupNormSiluParams& p, const Tile& tile, const float* center, float* sums) {
  constexpr int kSums = 4;             // vectors side by side whose sums the registers hold
  constexpr std::int64_t kChain = 16;  // pixels: longer sums round more
  const std::int64_t C = p.channels;
  const auto x = input<T, summed>(p) + tile.element;
  by_channels<kSums>(C, [&](std::int64_t c, auto width, int lanes) FASTDIFF_LAMBDA_INLINE {
    Floats middle[width], d_sums[width] = {}, squares[width] = {};
    for (int k = 0; k < width; ++k) middle[k] = load(center + c + k * kLanes, lanes);
    for (std::int64_t first = 0; first < tile.pixels; first += kChain) {
      const std::int64_t last = std::min(first + kChain, tile.pixels);
      Floats d_chain[width] = {}, square_chain[width] = {};
      for (std::int64_t pixel = first, at = first * C + c; pixel < last; ++pixel, at += C) {
        for (int k = 0; k < width; ++k) {
          const Floats d = x.load_at(at + k * kLanes, lanes) - middle[k];
          d_chain[k] += d;
          square_chain[k] += d * d;
        }
      }
      for (int k = 0; k < width; ++k) d_sums[k] += d_chain[k], squares[k] += square_chain[k];
    }
    for (int k = 0; k < width; ++k) {
      store(sums + c + k * kLanes, d_sums[k], lanes);
      store(sums + C + c + k * kLanes, squares[k], lanes);
    }
  });
}

// Turns the sums of a sample's tiles into its channels' coefficients.
inline void merge(const GroupNormSiluParams& p, std::int64_t sample, const float* center,
                  const float* sums, std::int64_t tiles, const Rows& rows, const Coefficients& to) {
  const std::int64_t C = p.channels, depth = C / p.groups;
  const double n = static_cast<double>(p.spatial);
  double *const mean = rows.mean, *const second = rows.sums[0];
  fill(p.added, sample, {0, C}, 0, rows.added);
  std::fill_n(mean, C, 0.0);
  std::fill_n(second, C, 0.0);
  for (std::int64_t i = 0; i < tiles; ++i, sums += 2 * C) {
    for (std::int64_t c = 0; c < C; ++c) mean[c] += sums[c], second[c] += sums[C + c];
  }
  for (std::int64_t c = 0; c < C; ++c) {
    const double offset = mean[c] / n;
    second[c] -= mean[c] * offset;
    mean[c] = static_cast<double>(center[c]) + rows.added[c] + offset;
  }
  for (std::int64_t first = 0, group = 0; first < C; first += depth, ++group) {
    double total = 0, squares = 0;
    for (std::int64_t c = first; c < first + depth; ++c) total += mean[c];
    const double of_group = total / static_cast<double>(depth);
    for (std::int64_t c = first; c < first + depth; ++c) {
      squares += second[c] + n * (mean[c] - of_group) * (mean[c] - of_group);
    }
    const double variance = squares / (n * static_cast<double>(depth));
    std::fill_n(mean + first, depth, of_group);
    std::fill_n(rows.rstd + first, depth,
                keep_statistics(p, sample * p.groups + group, of_group, variance));
  }
  coefficients(p, sample, {0, C}, rows, to);
}

template <bool silu_follows, class X>
FASTDIFF_INLINE void tile_output(const X& x, typename X::Element* y, std::int64_t pixels,
                                 std::int64_t C, const Coefficients& of) {
  using T = typename X::Element;
  by_channels<kWide>(C, [&](std::int64_t c, auto width, int lanes) FASTDIFF_LAMBDA_INLINE {
    Floats center[width], slope[width], offset[width];
    for (int k = 0; k < width; ++k) {
      center[k] = load(of.center + c + k * kLanes, lanes);
      slope[k] = load(of.slope + c + k * kLanes, lanes);
      offset[k] = load(of.offset + c + k * kLanes, lanes);
    }
    for (std::int64_t pixel = 0, at = c; pixel < pixels; ++pixel, at += C) {
      for (int k = 0; k < width; ++k) {
        const Floats d = x.load_at(at + k * kLanes, lanes) - center[k];
        store(y + at + k * kLanes, act<T, silu_follows>(d * slope[k] + offset[k]), lanes);
      }
    }
  });
}

template <class T, bool summed>
void output_tile(const GroupNormSiluParams& p, const Tile& tile, const Coefficients& of) {
  const auto x = input<T, summed>(p) + tile.element;
  T* y = static_cast<T*>(p.y) + tile.element;
  p.silu ? tile_output<true>(x, y, tile.pixels, p.channels, of)
         : tile_output<false>(x, y, tile.pixels, p.channels, of);
}

inline Kernels kernels(DType dtype, bool summed) {
  return for_input(dtype, summed, [](auto element, auto sum) {
    using T = decltype(element);
    constexpr bool kSummed = decltype(sum)::value;
    return Kernels{slabs<T, kSummed>, centers<T, kSummed>, sum_tile<T, kSummed>, merge,
                   output_tile<T, kSummed>};
  });
}
