// Chooses the kernels by sizes and device, and launches them.
#include "block.h"
#include "kernels.h"

namespace fastdiff {

std::int64_t group_norm_silu_cuda_workspace(const GroupNormSiluParams& p) {
  const Plan plan = plan_for(p, current_device());
  if (!plan.covered) return -1;
  if (plan.on_chip) return 0;
  return plan.blocks(p.batch) * plan.groups * static_cast<std::int64_t>(sizeof(Moments));
}

const char* group_norm_silu_cuda(const GroupNormSiluParams& p, void* stream_handle) {
  const Plan plan = plan_for(p, current_device());
  const auto blocks = static_cast<unsigned>(plan.blocks(p.batch));
  const Grid grid{dim3(blocks), static_cast<unsigned>(plan.threads()), Shared::bytes(plan),
                  plan.on_chip ? static_cast<unsigned>(plan.parts) : 1};
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  cudaError_t status;
  if (plan.on_chip) {
    status = launch(once_kernel(p, plan), grid, stream, p, plan);
  } else {
    status = launch(statistics_kernel(p, plan), grid, stream, p, plan);
    constexpr int kGroups = kThreads / kWarp;  // of a block
    const Grid merging{dim3(static_cast<unsigned>(divide_up(p.batch * p.groups, kGroups))),
                       kThreads};
    if (status == cudaSuccess) status = launch(merge_kernel(), merging, stream, p, plan);
    if (status == cudaSuccess) status = launch(output_kernel(p, plan), grid, stream, p, plan);
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastdiff
