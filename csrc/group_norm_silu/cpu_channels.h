// What the kernels of the output and of its gradient share; included within a namespace.

// x, or x + residual where `summed`.
template <class T, bool summed>
struct Input {
  using Element = T;
  const T* x;
  const T* residual;

  FASTDIFF_INLINE Floats load_at(std::int64_t i, int count = kLanes) const {
    const Floats v = load(x + i, count);
    return summed ? v + load(residual + i, count) : v;
  }
  FASTDIFF_INLINE Input operator+(std::int64_t i) const {
    return {x + i, summed ? residual + i : nullptr};
  }
};

template <class T, bool summed>
FASTDIFF_INLINE Input<T, summed> input(const GroupNormSiluParams& p) {
  return {static_cast<const T*>(p.x), static_cast<const T*>(p.residual)};
}

// ---- the coefficients of some neighbouring channels: y = act((x - center) * slope + offset) ----

inline void fill(const ChannelVector& v, std::int64_t sample, const Channels& channels,
                 float absent, float* row) {
  if (v.data == nullptr) {
    std::fill_n(row, channels.count, absent);
    return;
  }
  const std::int64_t first = sample * v.sample_stride + channels.first * v.channel_stride;
  const auto copy = [&](const auto* from) FASTDIFF_LAMBDA_INLINE {
    from += first;
    std::int64_t c = 0;
    if (v.channel_stride == 1) {
      for (; c + kLanes <= channels.count; c += kLanes) store(row + c, load(from + c));
    }
    for (; c < channels.count; ++c) row[c] = load(from + c * v.channel_stride, 1)[0];
  };
  switch (v.dtype) {
    case DType::float32:
      return copy(static_cast<const float*>(v.data));
    case DType::float16:
      return copy(static_cast<const Float16*>(v.data));
    default:
      return copy(static_cast<const BFloat16*>(v.data));
  }
}

// From `rows`' mean and rstd of each channel's group, and what the channel is raised by before.
inline void coefficients(const GroupNormSiluParams& p, std::int64_t sample,
                         const Channels& channels, const Rows& rows, const Coefficients& to) {
  fill(p.weight, 0, channels, 1, rows.weight);
  fill(p.bias, 0, channels, 0, rows.bias);
  fill(p.scale, sample, channels, 0, rows.scale);
  fill(p.shift, sample, channels, 0, rows.shift);
  for (std::int64_t c = 0; c < channels.count; ++c) {
    const double middle = rows.mean[c] - rows.added[c];
    const double modulation = 1 + static_cast<double>(rows.scale[c]);
    const double slope = modulation * rows.weight[c] * rows.rstd[c];
    const float center = static_cast<float>(middle);
    to.center[c] = center;
    to.slope[c] = static_cast<float>(slope);
    to.offset[c] =
        static_cast<float>(modulation * rows.bias[c] + rows.shift[c] - slope * (middle - center));
  }
}

// In float64: with x's own values as centers the sums are not small.
FASTDIFF_INLINE double sum(const Floats& v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// f(c, width, lanes) for every block of channels: `width` vectors, all but the last one whole.
template <int wide, class F>
FASTDIFF_INLINE void by_channels(std::int64_t channels, const F& f) {
  std::int64_t c = 0;
  for (; c + wide * kLanes <= channels; c += wide * kLanes) {
    f(c, std::integral_constant<int, wide>(), kLanes);
  }
  for (; c + kLanes <= channels; c += kLanes) f(c, std::integral_constant<int, 1>(), kLanes);
  if (c < channels) f(c, std::integral_constant<int, 1>(), static_cast<int>(channels - c));
}

// make(T(), whether a residual is summed) for T as the kernels take it, both constants.
template <class Make>
auto for_input(DType dtype, bool summed, const Make& make) {
  return for_dtype(dtype, [&](auto element) {
    return summed ? make(element, std::true_type()) : make(element, std::false_type());
  });
}
