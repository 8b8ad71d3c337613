// What cpu_targets.h compiles for each kind of processor: sums, merge and output of both layouts.

#include "cpu_channels.h"

// The gradient of what SiLU takes, from that of what it gives.
template <class T, bool silu_follows>
FASTDIFF_INLINE Floats before_silu(const Floats& grad, const Floats& z) {
  if constexpr (!silu_follows) return grad;
  const Floats sigmoid = divided<T>(splat(1), sigmoid_denominator<T>(z));
  return grad * (sigmoid * (1.0f + z * (1.0f - sigmoid)));
}

// The coefficients of y, from the statistics that the forward has kept.
inline void begin_channels(const GroupNormSiluGradientParams& p, std::int64_t sample,
                           const Channels& channels, const Rows& rows, const Coefficients& to) {
  const GroupNormSiluParams& forward = p.forward;
  const std::int64_t depth = forward.channels / forward.groups;
  for (std::int64_t c = 0; c < channels.count; ++c) {
    const std::int64_t group = sample * forward.groups + (channels.first + c) / depth;
    rows.mean[c] = forward.mean[group];
    rows.rstd[c] = forward.rstd[group];
  }
  fill(forward.added, sample, channels, 0, rows.added);
  coefficients(forward, sample, channels, rows, to);
}

// Of whole groups, from rows.sums: over each channel's pixels of dz, of dz * (x - center) and of
// x - center.
inline void merge_channels(const GroupNormSiluGradientParams& p, std::int64_t sample,
                           const Channels& channels, const Rows& rows, const Backward& to,
                           const OfParameters& of) {
  const GroupNormSiluParams& forward = p.forward;
  const std::int64_t depth = forward.channels / forward.groups;
  const double pixels = static_cast<double>(forward.spatial);
  for (std::int64_t first = 0; first < channels.count; first += depth) {
    double mean_dh = 0, mean_dh_h = 0;
    for (std::int64_t c = first; c < first + depth; ++c) {
      const double rstd = rows.rstd[c], modulation = 1 + static_cast<double>(rows.scale[c]);
      const double left = to.forward.center[c] + static_cast<double>(rows.added[c]) - rows.mean[c];
      const double dz = rows.sums[0][c], dz_h = (rows.sums[1][c] + left * dz) * rstd;
      const std::int64_t channel = channels.first + c;
      const std::int64_t at = sample * forward.channels + channel;
      p.of_shift[at] = static_cast<float>(dz);
      p.of_scale[at] = static_cast<float>(rows.weight[c] * dz_h + rows.bias[c] * dz);
      of.weight[channel] = modulation * dz_h;
      of.bias[channel] = modulation * dz;
      mean_dh += modulation * rows.weight[c] * dz;
      mean_dh_h += modulation * rows.weight[c] * dz_h;
    }
    mean_dh /= pixels * static_cast<double>(depth);
    mean_dh_h /= pixels * static_cast<double>(depth);
    for (std::int64_t c = first; c < first + depth; ++c) {
      const double rstd = rows.rstd[c];
      const double left = to.forward.center[c] + static_cast<double>(rows.added[c]) - rows.mean[c];
      const double linear = rstd * rstd * mean_dh_h, constant = rstd * mean_dh + left * linear;
      to.linear[c] = static_cast<float>(linear);
      to.constant[c] = static_cast<float>(constant);
      const double slope = (1 + static_cast<double>(rows.scale[c])) * rows.weight[c] * rstd;
      p.of_added[sample * forward.channels + channels.first + c] = static_cast<float>(
          slope * rows.sums[0][c] - (linear * rows.sums[2][c] + constant * pixels));
    }
  }
}

// ---- contiguous: a channel is one run of memory ----

template <bool silu_follows, class X>
FASTDIFF_INLINE void run_sums(const X& x, const typename X::Element* grad, std::int64_t n,
                              const Coefficients& of, std::int64_t c, const Rows& rows) {
  constexpr int kChains = 2;
  constexpr std::int64_t kRun = 64 * kLanes;  // longer sums round more
  const Floats center = splat(of.center[c]), slope = splat(of.slope[c]);
  const Floats offset = splat(of.offset[c]);
  for (double* total : rows.sums) total[c] = 0;
  for (std::int64_t first = 0; first < n; first += kRun) {
    Floats sums[3][kChains] = {};
    const auto add = [&](int k, const Floats& d, const Floats& grad) FASTDIFF_LAMBDA_INLINE {
      const Floats dz = before_silu<float, silu_follows>(grad, d * slope + offset);
      sums[0][k] += dz;
      sums[1][k] += dz * d;
      sums[2][k] += d;
    };
    const std::int64_t last = std::min(first + kRun, n);
    std::int64_t i = first;
    for (; i + kChains * kLanes <= last; i += kChains * kLanes) {
      for (int k = 0; k < kChains; ++k) {
        add(k, x.load_at(i + k * kLanes) - center, load(grad + i + k * kLanes));
      }
    }
    for (; i < last; i += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, last - i));
      Floats d = x.load_at(i, count) - center;
      for (int lane = count; lane < kLanes; ++lane) d[lane] = 0;
      add(0, d, load(grad + i, count));
    }
    for (int k = 0; k < 3; ++k) rows.sums[k][c] += sum(sums[k][0] + sums[k][1]);
  }
}

template <bool silu_follows, class X>
FASTDIFF_INLINE void run_output(const X& x, const typename X::Element* grad,
                                typename X::Element* of_x, std::int64_t n, const Backward& of,
                                std::int64_t c) {
  using T = typename X::Element;
  const Floats center = splat(of.forward.center[c]), slope = splat(of.forward.slope[c]);
  const Floats offset = splat(of.forward.offset[c]);
  const Floats linear = splat(of.linear[c]), constant = splat(of.constant[c]);
  const auto at = [&](std::int64_t i, int count) FASTDIFF_LAMBDA_INLINE {
    const Floats d = x.load_at(i, count) - center;
    const Floats dz = before_silu<T, silu_follows>(load(grad + i, count), d * slope + offset);
    store(of_x + i, slope * dz - (d * linear + constant), count);
  };
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) at(i, kLanes);
  if (i < n) at(i, static_cast<int>(n - i));
}

template <bool silu_follows, class X>
void slab(const GroupNormSiluGradientParams& p, std::int64_t sample, const Channels& channels,
          const X& x, const Rows& rows, const Backward& of, const OfParameters& of_parameters) {
  using T = typename X::Element;
  const std::int64_t n = p.forward.spatial;
  const std::int64_t start = (sample * p.forward.channels + channels.first) * n;
  const T* grad = static_cast<const T*>(p.grad) + start;
  T* of_x = static_cast<T*>(p.of_x) + start;
  begin_channels(p, sample, channels, rows, of.forward);
  for (std::int64_t c = 0; c < channels.count; ++c) {
    run_sums<silu_follows>(x + (start + c * n), grad + c * n, n, of.forward, c, rows);
  }
  merge_channels(p, sample, channels, rows, of, of_parameters);
  for (std::int64_t c = 0; c < channels.count; ++c) {
    run_output<silu_follows>(x + (start + c * n), grad + c * n, of_x + c * n, n, of, c);
  }
}

template <class T, bool summed>
void slabs(const GroupNormSiluGradientParams& p, std::int64_t begin, std::int64_t end,
           double* of_parameters) {
  const std::int64_t depth = p.forward.channels / p.forward.groups;
  const Rows rows(depth);
  const std::unique_ptr<float[]> of_x(new float[2 * depth]);
  const Backward of{rows.coefficients, of_x.get(), of_x.get() + depth};
  const auto x = input<T, summed>(p.forward);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t sample = i / p.forward.groups;
    const Channels channels{i % p.forward.groups * depth, depth};
    const OfParameters parts = of_sample(p, of_parameters, sample);
    p.forward.silu ? slab<true>(p, sample, channels, x, rows, of, parts)
                   : slab<false>(p, sample, channels, x, rows, of, parts);
  }
}

// ---- channels-last: a vector holds neighbouring channels of one pixel ----

inline void begin(const GroupNormSiluGradientParams& p, std::int64_t sample, const Rows& rows,
                  const Coefficients& to) {
  begin_channels(p, sample, {0, p.forward.channels}, rows, to);
}

template <bool silu_follows, class X>
FASTDIFF_INLINE void tile_sums(const X& x, const typename X::Element* grad, std::int64_t pixels,
                               std::int64_t C, const Coefficients& of, float* sums) {
  constexpr std::int64_t kChain = 16;  // pixels: longer sums round more
  by_channels<kWide / 2>(C, [&](std::int64_t c, auto width, int lanes) FASTDIFF_LAMBDA_INLINE {
    Floats center[width], slope[width], offset[width], totals[3][width] = {};
    for (int k = 0; k < width; ++k) {
      center[k] = load(of.center + c + k * kLanes, lanes);
      slope[k] = load(of.slope + c + k * kLanes, lanes);
      offset[k] = load(of.offset + c + k * kLanes, lanes);
    }
    for (std::int64_t first = 0; first < pixels; first += kChain) {
      const std::int64_t last = std::min(first + kChain, pixels);
      Floats chain[3][width] = {};
      for (std::int64_t pixel = first, at = first * C + c; pixel < last; ++pixel, at += C) {
        for (int k = 0; k < width; ++k) {
          const Floats d = x.load_at(at + k * kLanes, lanes) - center[k];
          const Floats dz = before_silu<float, silu_follows>(load(grad + at + k * kLanes, lanes),
                                                             d * slope[k] + offset[k]);
          chain[0][k] += dz;
          chain[1][k] += dz * d;
          chain[2][k] += d;
        }
      }
      for (int i = 0; i < 3; ++i) {
        for (int k = 0; k < width; ++k) totals[i][k] += chain[i][k];
      }
    }
    for (int i = 0; i < 3; ++i) {
      for (int k = 0; k < width; ++k) store(sums + i * C + c + k * kLanes, totals[i][k], lanes);
    }
  });
}

template <class T, bool summed>
void sum_tile(const GroupNormSiluGradientParams& p, const Tile& tile, const Coefficients& of,
              float* sums) {
  const auto x = input<T, summed>(p.forward) + tile.element;
  const T* grad = static_cast<const T*>(p.grad) + tile.element;
  const std::int64_t C = p.forward.channels;
  p.forward.silu ? tile_sums<true>(x, grad, tile.pixels, C, of, sums)
                 : tile_sums<false>(x, grad, tile.pixels, C, of, sums);
}

inline void merge(const GroupNormSiluGradientParams& p, std::int64_t sample, const float* sums,
                  std::int64_t tiles, const Rows& rows, const Backward& to,
                  const OfParameters& of) {
  const Channels all{0, p.forward.channels};
  for (double* total : rows.sums) std::fill_n(total, all.count, 0.0);
  for (std::int64_t i = 0; i < tiles; ++i) {
    for (double* total : rows.sums) {
      for (std::int64_t c = 0; c < all.count; ++c) total[c] += sums[c];
      sums += all.count;
    }
  }
  merge_channels(p, sample, all, rows, to, of);
}

template <bool silu_follows, class X>
FASTDIFF_INLINE void tile_output(const X& x, const typename X::Element* grad,
                                 typename X::Element* of_x, std::int64_t pixels, std::int64_t C,
                                 const Backward& of) {
  using T = typename X::Element;
  by_channels<kWide / 2>(C, [&](std::int64_t c, auto width, int lanes) FASTDIFF_LAMBDA_INLINE {
    Floats center[width], slope[width], offset[width], linear[width], constant[width];
    for (int k = 0; k < width; ++k) {
      center[k] = load(of.forward.center + c + k * kLanes, lanes);
      slope[k] = load(of.forward.slope + c + k * kLanes, lanes);
      offset[k] = load(of.forward.offset + c + k * kLanes, lanes);
      linear[k] = load(of.linear + c + k * kLanes, lanes);
      constant[k] = load(of.constant + c + k * kLanes, lanes);
    }
    for (std::int64_t pixel = 0, at = c; pixel < pixels; ++pixel, at += C) {
      for (int k = 0; k < width; ++k) {
        const Floats d = x.load_at(at + k * kLanes, lanes) - center[k];
        const Floats dz = before_silu<T, silu_follows>(load(grad + at + k * kLanes, lanes),
                                                       d * slope[k] + offset[k]);
        store(of_x + at + k * kLanes, slope[k] * dz - (d * linear[k] + constant[k]), lanes);
      }
    }
  });
}

template <class T, bool summed>
void output_tile(const GroupNormSiluGradientParams& p, const Tile& tile, const Backward& of) {
  const auto x = input<T, summed>(p.forward) + tile.element;
  const T* grad = static_cast<const T*>(p.grad) + tile.element;
  T* of_x = static_cast<T*>(p.of_x) + tile.element;
  const std::int64_t C = p.forward.channels;
  p.forward.silu ? tile_output<true>(x, grad, of_x, tile.pixels, C, of)
                 : tile_output<false>(x, grad, of_x, tile.pixels, C, of);
}

inline Kernels kernels(DType dtype, bool summed) {
  return for_input(dtype, summed, [](auto element, auto sum) {
    using T = decltype(element);
    constexpr bool kSummed = decltype(sum)::value;
    return Kernels{slabs<T, kSummed>, begin, sum_tile<T, kSummed>, merge, output_tile<T, kSummed>};
  });
}
