// What a block of the gradient's CUDA kernels does: sums by channel, what follows from them, and
// the gradient of x.
#pragma once

#include "block.h"
#include "gradient_plan.h"

namespace fastdiff {

__device__ __forceinline__ float sigmoid(float z, float) {
  return divide(1.0f, 1.0f + fminf(expf(-z), 8e37f));
}
// To a rounding of a short result.
template <class T>
__device__ __forceinline__ float sigmoid(float z, T) {
  return fast_divide(1.0f, 1.0f + fast_exp(-z));
}

// The gradient of what SiLU takes, from that of what it gives; as exact as T can show.
template <class T>
__device__ __forceinline__ float before_silu(float grad, float z) {
  const float s = sigmoid(z, T{});
  return grad * (s * fmaf(z, 1.0f - s, 1.0f));
}

// A channel: z = (x - center) * slope + offset, and the gradient of x is
// slope * dz - ((x - center) * linear + constant).
struct Backward {
  float center, slope, offset, linear, constant;
};

__device__ __forceinline__ Backward forward_of(const GroupNormSiluParams& p, std::int64_t sample,
                                               std::int64_t channel) {
  const std::int64_t group = sample * p.groups + channel / (p.channels / p.groups);
  const Moments mean{0, p.mean[group], 0, 0};
  const Affine a = with_statistics(before_statistics(p, sample, channel), mean, p.rstd[group]);
  return {a.center, a.slope, a.offset, 0, 0};
}

// ---- sums by channel ----

// Of dz, of dz * (x - center) and of x - center, of `width` channels, or of one in as many parts.
template <int width>
struct Terms {
  float at[3][width] = {};

  template <class V>
  __device__ __forceinline__ void add(const V& x, float grad, int k, const Backward& of,
                                      bool silu) {
    const float d = x.from(of.center, k);
    const float dz = silu ? before_silu<float>(grad, fmaf(d, of.slope, of.offset)) : grad;
    at[0][k] += dz;
    at[1][k] = fmaf(dz, d, at[1][k]);
    at[2][k] += d;
  }
};

// Channels-last: keep(i, sum) for i of [3][slab], the sums of this block's part.
template <int width, class C, class Keep>
__device__ __forceinline__ void sum_block(const Plan& plan, const C& column,
                                          const Terms<width>& own, float* scratch,
                                          const Keep& keep) {
  const int sums = 3 * plan.slab;
  if (column.row < plan.down) {
#pragma unroll
    for (int s = 0; s < 3; ++s) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        scratch[column.row * sums + s * plan.slab + column.across * width + k] = own.at[s][k];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sums; i += blockDim.x) {
    float even = 0, odd = 0;  // two chains, each half as long
    for (int row = 0; row < plan.down; row += 2) {
      even += scratch[row * sums + i];
      if (row + 1 < plan.down) odd += scratch[(row + 1) * sums + i];
    }
    keep(i, even + odd);
  }
}

// ---- what follows from the sums ----

// For the channels of a slab: what each gives its group, and the sums that it comes from; then what
// its group gives back.
struct OfChannels {
  double *along, *along_h, *dz, *d;  // [slab]
  double *mean, *mean_h;             // [groups]

  __device__ __forceinline__ OfChannels(unsigned char* shared, const Plan& plan)
      : along(reinterpret_cast<double*>(shared)),
        along_h(along + plan.slab),
        dz(along_h + plan.slab),
        d(dz + plan.slab),
        mean(d + plan.slab),
        mean_h(mean + plan.groups) {}
};

// total(s, i) is the whole of sum s of channel i. Fills the table's `linear` and `constant`; the
// part that is 0 also writes the gradients by channel.
template <class Total>
__device__ __forceinline__ void finish_channels(const GroupNormSiluGradientParams& p,
                                                const Plan& plan, const Part& part,
                                                const OfChannels& of, Backward* table,
                                                const Total& total) {
  const GroupNormSiluParams& forward = p.forward;
  const std::int64_t first = part.first_channel(plan), depth = plan.slab / plan.groups;
  const auto statistics = [&](int i) {
    const std::int64_t group = part.sample * forward.groups + (first + i) / depth;
    struct {
      double mean, rstd;
    } both{forward.mean[group], forward.rstd[group]};
    return both;
  };
  const auto left = [&](int i, double mean) {  // by which the center is above the mean
    const float added = Entry(forward.added, part.sample, first + i).value(0);
    return table[i].center + static_cast<double>(added) - mean;
  };
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    const Entry weights(forward.weight, 0, first + i), biases(forward.bias, 0, first + i);
    const Entry scales(forward.scale, part.sample, first + i);
    const auto [mean, rstd] = statistics(i);
    const double weight = weights.value(1), bias = biases.value(0), factor = 1.0 + scales.value(0);
    const double dz = total(0, i), dz_h = (total(1, i) + left(i, mean) * dz) * rstd;
    of.along[i] = factor * weight * dz;
    of.along_h[i] = factor * weight * dz_h;
    of.dz[i] = dz;
    of.d[i] = total(2, i);
    if (part.part > 0) continue;
    const std::int64_t at = part.sample * forward.channels + first + i;
    p.of_shift[at] = static_cast<float>(dz);
    p.of_scale[at] = static_cast<float>(weight * dz_h + bias * dz);
    double* const parameters = GradientWorkspace(forward).parameters;
    parameters[at + part.sample * forward.channels] = factor * dz_h;
    parameters[at + (part.sample + 1) * forward.channels] = factor * dz;
  }
  __syncthreads();
  const double count = static_cast<double>(forward.spatial) * static_cast<double>(depth);
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    double along = 0, along_h = 0;
    for (int i = threadIdx.x % kWarp; i < depth; i += kWarp) {
      along += of.along[group * depth + i];
      along_h += of.along_h[group * depth + i];
    }
    along = add_lanes(static_cast<float>(along));
    along_h = add_lanes(static_cast<float>(along_h));
    if (threadIdx.x % kWarp == 0) {
      of.mean[group] = along / count;
      of.mean_h[group] = along_h / count;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    const auto [mean, rstd] = statistics(i);
    const double linear = rstd * rstd * of.mean_h[i / depth];
    const double constant = rstd * of.mean[i / depth] + left(i, mean) * linear;
    table[i].linear = static_cast<float>(linear);
    table[i].constant = static_cast<float>(constant);
    if (part.part > 0) continue;
    p.of_added[part.sample * forward.channels + first + i] =
        static_cast<float>(table[i].slope * of.dz[i] -
                           (linear * of.d[i] + constant * static_cast<double>(forward.spatial)));
  }
}

// ---- the gradient of x ----

template <class T, int width, bool channels_last, class V, class C>
__device__ __forceinline__ void write_gradient(const GroupNormSiluGradientParams& p, const V& x,
                                               const Pack<T, width>& grad, const C& column, int i,
                                               const Backward (&of)[channels_last ? width : 1]) {
  float out[width];
#pragma unroll
  for (int k = 0; k < width; ++k) {
    const Backward& b = of[channels_last ? k : 0];
    const float d = x.from(b.center, k), own = value(grad, k);
    const float dz = p.forward.silu ? before_silu<T>(own, fmaf(d, b.slope, b.offset)) : own;
    out[k] = fmaf(b.slope, dz, -fmaf(d, b.linear, b.constant));
  }
  T* const of_x = static_cast<T*>(p.of_x) + column.element(i);
  *reinterpret_cast<Pack<T, width>*>(of_x) = pack<T>(out);
}

}  // namespace fastdiff
