// Two launches, for slabs that no cluster holds: statistics of their parts, then the output.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

constexpr int kHeld = 4;

// Moments [sample][slab][part][group of the slab], to p.workspace.
template <class T, int width, int held, int pieces, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, with_residual ? 1 : 2)
    statistics(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<T, width, channels_last> column(p, plan, part);
  const Known<width, channels_last> known(p, part.sample, column.channel);
  Moments own[pieces];
  const int total = column.count();
  for (int from = 0; from < total; from += held) {
    const int count = min(held, total - from);
    Held<T, width, held, with_residual> h;
    h.load(p, column, from, count);
    Moments some[pieces];
    moments_of<width, held, pieces, channels_last>(p, part, column, h, from, count, known, some);
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) own[piece] = merge(own[piece], some[piece]);
  }
  auto* const totals =
      static_cast<Moments*>(p.workspace) + static_cast<std::int64_t>(blockIdx.x) * plan.groups;
  merge_block<pieces>(plan, column, own, shared.scratch, totals);
}

// The last blocks come first: what they read was read last by `statistics` and is still in cache.
template <class T, int width, int held, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, with_residual ? 1 : 2)
    output(const GroupNormSiluParams p, const Plan plan) {
  const std::int64_t block = gridDim.x - 1 - blockIdx.x;
  const Part part(plan, block);
  const Shared shared(plan);
  const Column<T, width, channels_last> column(p, plan, part);
  Held<T, width, held, with_residual> h;
  const int total = column.count();
  h.load(p, column, 0, min(held, total));
  const Known<width, channels_last> known(p, part.sample, column.channel);
  const auto* const moments =
      static_cast<const Moments*>(p.workspace) + (block - part.part) * plan.groups;
  const int lane = threadIdx.x % kWarp;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    Moments sum;
    for (int i = lane; i < plan.parts; i += kWarp) {
      sum = merge(sum, moments[static_cast<std::int64_t>(i) * plan.groups + group]);
    }
    sum = merge_lanes(sum);
    if (lane == 0) {
      const Normal n = normal_of(sum, p.eps);
      shared.normals[group] = n;
      if (part.part == 0) keep(p, plan, part, group, n);
    }
  }
  __syncthreads();
  const auto coefficients = known.with(p, plan, part, column.across, shared);
  for (int from = 0; from < total; from += held) {
    const int count = min(held, total - from);
    if (from > 0) h.load(p, column, from, count);
    write<T, width, held, channels_last>(p, h, column, from, count, coefficients);
  }
}

struct Both {
  Kernel statistics, output;
};

template <class T, int width, int pieces, bool channels_last>
Both by_residual(const GroupNormSiluParams& p) {
  if (p.residual != nullptr) {
    return {statistics<T, width, kHeld, pieces, channels_last, true>,
            output<T, width, kHeld, channels_last, true>};
  }
  return {statistics<T, width, kHeld, pieces, channels_last, false>,
          output<T, width, kHeld, channels_last, false>};
}

template <class T>
Both by_layout(const GroupNormSiluParams& p, const Plan& plan) {
  constexpr int kWidth = 16 / sizeof(T);
  if (plan.width == 1) {
    return p.channels_last ? by_residual<T, 1, 1, true>(p) : by_residual<T, 1, 1, false>(p);
  }
  if (!p.channels_last) return by_residual<T, kWidth, 1, false>(p);
  if (plan.pieces == 1) return by_residual<T, kWidth, 1, true>(p);
  return by_residual<T, kWidth, kWidth, true>(p);
}

Both both(const GroupNormSiluParams& p, const Plan& plan) {
  switch (p.dtype) {
    case DType::float32:
      return by_layout<float>(p, plan);
    case DType::float16:
      return by_layout<__half>(p, plan);
    default:
      return by_layout<__nv_bfloat16>(p, plan);
  }
}

}  // namespace

Kernel statistics_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  return both(p, plan).statistics;
}

Kernel output_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  return both(p, plan).output;
}

}  // namespace fastdiff
