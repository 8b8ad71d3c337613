// Channels-last, in a launch that reads x and y's gradient once: a slab of both stays in the shared
// memory of a block, or of a cluster of blocks that exchange their sums.
#include "gradient_block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

template <class T, int width>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_once(const GroupNormSiluGradientParams p, const GradientPlan gradient) {
  const Plan& plan = gradient.plan;
  unsigned char* const shared = dynamic_shared();
  unsigned char* const channels = shared + plan.held_bytes;
  auto* const totals = reinterpret_cast<float*>(channels + channels_bytes(plan));
  auto* const table = reinterpret_cast<Backward*>(totals + 3 * plan.slab);
  auto* const scratch = reinterpret_cast<float*>(table + plan.slab);
  const Part part(plan, blockIdx.x);
  const Column<width, true> column(p.forward, plan, part);
  const int count = column.count();
  const Slots<T, width> x(shared), grad(shared + plan.held_bytes / 2);
  x.request(p.forward.x, column, count);
  grad.request(p.grad, column, count);
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    table[i] = forward_of(p.forward, part.sample, part.first_channel(plan) + i);
  }
  __syncthreads();
  Backward of[width];
#pragma unroll
  for (int k = 0; k < width; ++k) of[k] = table[column.channel(0, k)];
  wait_copies<0>();
  Terms<width> own;
  for (int i = 0; i < count; ++i) {
    const auto grads = grad[i].x;
#pragma unroll
    for (int k = 0; k < width; ++k) own.add(x[i], value(grads, k), k, of[k], p.forward.silu);
  }
  sum_block(plan, column, own, scratch, [&](int i, float sum) { totals[i] = sum; });
  if (plan.parts > 1) cluster_barrier();
  __syncthreads();
  const auto total = [&](int s, int i) {
    const float* const own = &totals[s * plan.slab + i];
    if (plan.parts == 1) return static_cast<double>(*own);
    double sum = 0;
    for (int rank = 0; rank < plan.parts; ++rank) sum += read_of_cluster(own, rank);
    return sum;
  };
  finish_channels(p, plan, part, OfChannels(channels, plan), table, total);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < width; ++k) of[k] = table[column.channel(0, k)];
  for (int i = 0; i < count; ++i) {
    write_gradient<T, width, true>(p, x[i], grad[i].x, column, i, of);
  }
  if (plan.parts > 1) cluster_barrier();  // others may still read this block's totals
}

}  // namespace

GradientKernel gradient_once_kernel(const GroupNormSiluGradientParams& p, const Plan& plan) {
  return by_dtype(p.forward.dtype, [&](auto zero) -> GradientKernel {
    using T = decltype(zero);
    return plan.width == 1 ? gradient_once<T, 1> : gradient_once<T, 16 / sizeof(T)>;
  });
}

}  // namespace fastdiff
