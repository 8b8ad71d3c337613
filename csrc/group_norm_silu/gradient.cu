// Chooses the gradient's kernels by sizes and device, and launches them.
#include "gradient_block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

constexpr int kStripe = kThreads / kWarp;  // samples that a block takes at a time

// Of weight and bias, [2, C]: the samples' parts summed, a lane an entry.
__global__ void __launch_bounds__(kThreads)
    gradient_parameters(const GroupNormSiluGradientParams p, const GradientPlan) {
  auto* const stripes = reinterpret_cast<double*>(dynamic_shared());
  const std::int64_t entries = 2 * p.forward.channels;
  const int lane = threadIdx.x % kWarp, stripe = threadIdx.x / kWarp;
  const std::int64_t entry = blockIdx.x * std::int64_t{kWarp} + lane;
  const double* const parts = GradientWorkspace(p.forward).parameters;
  double sum = 0;
  if (entry < entries) {
#pragma unroll 4
    for (std::int64_t n = stripe; n < p.forward.batch; n += kStripe) {
      sum += parts[n * entries + entry];
    }
  }
  stripes[threadIdx.x] = sum;
  __syncthreads();
  if (stripe > 0 || entry >= entries) return;
  for (int other = 1; other < kStripe; ++other) sum += stripes[other * kWarp + lane];
  float* const to = entry < p.forward.channels ? p.of_weight : p.of_bias - p.forward.channels;
  to[entry] = static_cast<float>(sum);
}

unsigned blocks_for(std::int64_t count, int of_block) {
  return static_cast<unsigned>(divide_up(count, of_block));
}

}  // namespace

std::int64_t group_norm_silu_gradient_cuda_workspace(const GroupNormSiluGradientParams& p) {
  const GradientPlan gradient = gradient_plan_for(p, current_device());
  return gradient.plan.covered ? GradientWorkspace::bytes(p.forward, gradient) : -1;
}

const char* group_norm_silu_gradient_cuda(const GroupNormSiluGradientParams& p,
                                          void* stream_handle) {
  const GroupNormSiluParams& forward = p.forward;
  const GradientPlan gradient = gradient_plan_for(p, current_device());
  const Plan& plan = gradient.plan;
  const auto blocks = static_cast<unsigned>(plan.blocks(forward.batch));
  const auto threads = static_cast<unsigned>(plan.threads());
  const auto run = [&, stream = static_cast<cudaStream_t>(stream_handle)](
                       GradientKernel kernel, const Grid& grid, cudaError_t before) {
    return before == cudaSuccess ? launch(kernel, grid, stream, p, gradient) : before;
  };
  cudaError_t status = cudaSuccess;
  if (plan.on_chip) {
    status = run(gradient_once_kernel(p, plan),
                 {dim3(blocks), threads, plan.held_bytes + beside_bytes(plan),
                  static_cast<unsigned>(plan.parts)},
                 status);
  } else {
    const Grid sums = forward.channels_last
                          ? Grid{dim3(blocks), threads, sums_bytes(plan)}
                          : Grid{dim3(blocks_for(gradient.runs(forward), kStripe)), kThreads};
    const auto slabs = static_cast<unsigned>(forward.batch * plan.slabs);
    const auto of_slab = blocks_for(std::min(plan.slab, kThreads), kWarp) * kWarp;
    status = run(gradient_sums_kernel(p, plan), sums, status);
    status = run(gradient_merge_kernel(),
                 {dim3(slabs), of_slab, channels_bytes(plan) + table_bytes(plan)}, status);
    status =
        run(gradient_output_kernel(p, plan), {dim3(blocks), threads, table_bytes(plan)}, status);
  }
  status = run(gradient_parameters,
               {dim3(blocks_for(2 * forward.channels, kWarp)), kThreads, kThreads * sizeof(double)},
               status);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastdiff
