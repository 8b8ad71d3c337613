// In launches that read x and y's gradient twice: sums of their parts, what follows from these, and
// the gradient of x.
#include "gradient_block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

template <class T, int width>
__device__ __forceinline__ Pack<T, width> load_gradient(const GroupNormSiluGradientParams& p,
                                                        std::int64_t element) {
  return *reinterpret_cast<const Pack<T, width>*>(static_cast<const T*>(p.grad) + element);
}

// Channels-last: a thread keeps the sums of its column's channels.
template <class T, int width, bool with_residual>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_sums(const GroupNormSiluGradientParams p, const GradientPlan gradient) {
  const Plan& plan = gradient.plan;
  const Part part(plan, blockIdx.x);
  const Column<width, true> column(p.forward, plan, part);
  const int count = column.count();
  Backward of[width];
#pragma unroll
  for (int k = 0; k < width; ++k) {
    of[k] = forward_of(p.forward, part.sample, part.first_channel(plan) + column.channel(0, k));
  }
  Terms<width> own;
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    const auto x = load<T, width, with_residual>(p.forward, column, i);
    const auto grad = load_gradient<T, width>(p, column.element(i));
#pragma unroll
    for (int k = 0; k < width; ++k) own.add(x, value(grad, k), k, of[k], p.forward.silu);
  }
  auto* const scratch = reinterpret_cast<float*>(dynamic_shared());
  float* const to = GradientWorkspace(p.forward).sums +
                    (part.sample * plan.parts + part.part) * 3 * p.forward.channels +
                    part.first_channel(plan);
  sum_block(plan, column, own, scratch, [&](int i, float sum) {
    to[i / plan.slab * p.forward.channels + i % plan.slab] = sum;
  });
}

// Contiguous: a warp takes a part of a channel.
template <class T, int width, bool with_residual>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_runs(const GroupNormSiluGradientParams p, const GradientPlan gradient) {
  const std::int64_t warp = blockIdx.x * std::int64_t{kThreads / kWarp} + threadIdx.x / kWarp;
  if (warp >= gradient.runs(p.forward)) return;
  const std::int64_t channel = warp % p.forward.channels, at = warp / p.forward.channels;
  const std::int64_t part = at % gradient.parts, sample = at / gradient.parts;
  const Backward of = forward_of(p.forward, sample, channel);
  const std::int64_t first = (sample * p.forward.channels + channel) * p.forward.spatial;
  const std::int64_t begin = part * gradient.vectors_of_part;
  const std::int64_t after = begin + gradient.vectors_of_part;
  const std::int64_t end = after < gradient.vectors ? after : gradient.vectors;
  Terms<width> own;
#pragma unroll 2
  for (std::int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
    const std::int64_t element = first + i * width;
    const auto x = load_at<T, width, with_residual>(p.forward, element);
    const auto grad = load_gradient<T, width>(p, element);
#pragma unroll
    for (int k = 0; k < width; ++k) own.add(x, value(grad, k), k, of, p.forward.silu);
  }
#pragma unroll
  for (int s = 0; s < 3; ++s) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < width; ++k) sum += own.at[s][k];
    sum = add_lanes(sum);
    float* const to = GradientWorkspace(p.forward).sums + (at * 3 + s) * p.forward.channels;
    if (threadIdx.x % kWarp == 0) to[channel] = sum;
  }
}

// A block a slab: its channels' parts merged.
__global__ void __launch_bounds__(kThreads)
    gradient_merge(const GroupNormSiluGradientParams p, const GradientPlan gradient) {
  const Plan& plan = gradient.plan;
  const std::int64_t C = p.forward.channels;
  const Part part(plan, blockIdx.x * plan.parts);
  const std::int64_t first = part.first_channel(plan);
  const GradientWorkspace workspace(p.forward);
  unsigned char* const shared = dynamic_shared();
  auto* const table = reinterpret_cast<Backward*>(shared + channels_bytes(plan));
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    table[i] = forward_of(p.forward, part.sample, first + i);
  }
  const float* const sums = workspace.sums + part.sample * gradient.parts * 3 * C + first;
  const auto total = [&](int s, int i) {
    double sum = 0;
#pragma unroll 4
    for (int k = 0; k < gradient.parts; ++k) sum += sums[(k * 3 + s) * C + i];
    return sum;
  };
  finish_channels(p, plan, part, OfChannels(shared, plan), table, total);
  float* const backward = workspace.backward + part.sample * 2 * C + first;
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    backward[i] = table[i].linear;
    backward[C + i] = table[i].constant;
  }
}

// The last blocks come first: what they read was read last by the sums and is still in cache.
template <class T, int width, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_output(const GroupNormSiluGradientParams p, const GradientPlan gradient) {
  const Plan& plan = gradient.plan;
  const std::int64_t C = p.forward.channels;
  const Part part(plan, gridDim.x - 1 - blockIdx.x);
  const std::int64_t first = part.first_channel(plan);
  const Column<width, channels_last> column(p.forward, plan, part);
  auto* const table = reinterpret_cast<Backward*>(dynamic_shared());
  const float* const backward = GradientWorkspace(p.forward).backward + part.sample * 2 * C + first;
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    table[i] = forward_of(p.forward, part.sample, first + i);
    table[i].linear = backward[i];
    table[i].constant = backward[C + i];
  }
  __syncthreads();
  constexpr int kChannels = channels_last ? width : 1;
  Backward of[kChannels];
  if constexpr (channels_last) {
#pragma unroll
    for (int k = 0; k < kChannels; ++k) of[k] = table[column.channel(0, k)];
  }
  const int count = column.count();
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    if constexpr (!channels_last) of[0] = table[column.channel(i, 0)];
    const auto x = load<T, width, with_residual>(p.forward, column, i);
    const auto grad = load_gradient<T, width>(p, column.element(i));
    write_gradient<T, width, channels_last>(p, x, grad, column, i, of);
  }
}

struct Both {
  GradientKernel sums, output;
};

template <class T, int width, bool with_residual>
Both by_layout(bool channels_last) {
  return channels_last ? Both{gradient_sums<T, width, with_residual>,
                              gradient_output<T, width, true, with_residual>}
                       : Both{gradient_runs<T, width, with_residual>,
                              gradient_output<T, width, false, with_residual>};
}

Both both(const GroupNormSiluParams& p, const Plan& plan) {
  return by_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    const bool summed = p.residual != nullptr;
    if (plan.width == 1) {
      return summed ? by_layout<T, 1, true>(p.channels_last)
                    : by_layout<T, 1, false>(p.channels_last);
    }
    return summed ? by_layout<T, kWidth, true>(p.channels_last)
                  : by_layout<T, kWidth, false>(p.channels_last);
  });
}

}  // namespace

GradientKernel gradient_sums_kernel(const GroupNormSiluGradientParams& p, const Plan& plan) {
  return both(p.forward, plan).sums;
}

GradientKernel gradient_merge_kernel() { return gradient_merge; }

GradientKernel gradient_output_kernel(const GroupNormSiluGradientParams& p, const Plan& plan) {
  return both(p.forward, plan).output;
}

}  // namespace fastdiff
