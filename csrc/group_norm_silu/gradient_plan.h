// How the gradient's CUDA kernels cut a tensor, and where they leave what they sum.
#pragma once

#include "moments.h"
#include "plan.h"

namespace fastdiff {

constexpr int kMostRows = 32;  // vectors that a thread sums: longer sums round more

struct GradientPlan {
  Plan plan;
  // The parts that a channel's sums come in: the plan's where channels-last, else runs of a
  // channel's vectors, a warp each.
  int parts = 1;
  std::int64_t vectors = 0, vectors_of_part = 0;  // contiguous: of a channel

  __host__ __device__ std::int64_t runs(const GroupNormSiluParams& p) const {
    return p.batch * p.channels * parts;
  }
};

// Bytes of a block's shared memory, by use; gradient_block.h lays them out.
inline std::size_t sums_bytes(const Plan& plan) {
  return static_cast<std::size_t>(plan.slab) * plan.down * 3 * sizeof(float);
}
__host__ __device__ inline std::size_t channels_bytes(const Plan& plan) {
  return (static_cast<std::size_t>(plan.slab) + plan.groups) * 4 * sizeof(double);
}
inline std::size_t table_bytes(const Plan& plan) {
  return static_cast<std::size_t>(plan.slab) * 5 * sizeof(float);
}
inline std::size_t beside_bytes(const Plan& plan) {
  return channels_bytes(plan) + sums_bytes(plan) +
         static_cast<std::size_t>(plan.slab) * 3 * sizeof(float) + table_bytes(plan);
}

inline GradientPlan gradient_plan_for(const GroupNormSiluGradientParams& p, const Device& device) {
  GroupNormSiluParams x = p.forward;
  x.y = p.of_x;
  GradientPlan gradient;
  Plan& plan = gradient.plan;
  const int size = element_size(x), widest = 16 / size;
  plan.width = fits(x, widest, p.grad) ? widest : 1;
  if (x.channels_last && try_on_chip(plan, x, device, 2 * size, beside_bytes)) return gradient;
  plan = split_plan(x, device, plan.width, kMostRows);
  const std::size_t most_shared = std::max(device.shared, kAlwaysShared);
  plan.covered &= channels_bytes(plan) + table_bytes(plan) <= most_shared;
  if (x.channels_last) {
    gradient.parts = plan.parts;
    return gradient;
  }
  gradient.vectors = x.spatial / plan.width;
  const std::int64_t wanted =
      divide_up(8 * kThreads / kWarp * device.multiprocessors, x.batch * x.channels);
  const std::int64_t useful = divide_up(gradient.vectors, 8 * kWarp);
  const std::int64_t needed = divide_up(gradient.vectors, kMostRows * kWarp);
  gradient.parts = static_cast<int>(
      std::clamp<std::int64_t>(std::max(std::min(wanted, useful), needed), 1, kMostParts));
  gradient.vectors_of_part = divide_up(gradient.vectors, gradient.parts);
  return gradient;
}

// What the kernels leave for each other, in p.forward.workspace.
struct GradientWorkspace {
  double* parameters;  // [N, 2, C]: a sample's part of the gradients of weight and bias
  float* backward;     // [N, 2, C]: `linear` and `constant` of each channel
  float* sums;         // [N, parts, 3, C]: of dz, of dz * (x - center) and of x - center

  __host__ __device__ explicit GradientWorkspace(const GroupNormSiluParams& p)
      : parameters(static_cast<double*>(p.workspace)),
        backward(reinterpret_cast<float*>(parameters + 2 * p.batch * p.channels)),
        sums(backward + 2 * p.batch * p.channels) {}

  static std::int64_t bytes(const GroupNormSiluParams& p, const GradientPlan& gradient) {
    const std::int64_t channels = p.batch * p.channels, size = sizeof(float);
    const std::int64_t of_split = (2 + 3 * gradient.parts) * channels * size;
    return 2 * channels * static_cast<std::int64_t>(sizeof(double)) +
           (gradient.plan.on_chip ? 0 : of_split);
  }
};

}  // namespace fastdiff
