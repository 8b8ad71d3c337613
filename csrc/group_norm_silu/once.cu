// One launch that reads once: a slab stays in the registers of a block, or of a cluster of blocks
// that exchange their statistics.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

// Of the blocks of a cluster, in the order of their ranks; every block comes to the same bits.
__device__ void merge_cluster(const GroupNormSiluParams& p, const Plan& plan, const Part& part,
                              const Shared& shared) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (plan.parts > 1) cluster_barrier();
#endif
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    Moments total;
    if (plan.parts == 1) {
      total = shared.totals[group];
    } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
      if (lane < plan.parts) {
        const float* theirs = &shared.totals[group].count;
        total = {read_of_cluster(theirs, lane), read_of_cluster(theirs + 1, lane),
                 read_of_cluster(theirs + 2, lane), read_of_cluster(theirs + 3, lane)};
      }
      total = merge_lanes(total, kWidestCluster);
#endif
    }
    if (lane == 0) {
      const Normal n = normal_of(total, p.eps);
      shared.normals[group] = n;
      if (part.part == 0) keep(p, plan, part, group, n);
    }
  }
  __syncthreads();
}

template <class T, int width, int held, int pieces, bool channels_last>
__global__ void __launch_bounds__(kThreads, held > 8 ? 1 : 2)
    once(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<T, width, channels_last> column(p, plan, part);
  const int count = column.count();
  Held<T, width, held, false> h;
  h.load(p, column, 0, count);
  const Known<width, channels_last> known(p, part.sample, column.channel);
  Moments own[pieces];
  moments_of<width, held, pieces, channels_last>(p, part, column, h, 0, count, known, own);
  merge_block<pieces>(plan, column, own, shared.scratch, shared.totals);
  merge_cluster(p, plan, part, shared);
  const auto coefficients = known.with(p, plan, part, column.across, shared);
  write<T, width, held, channels_last>(p, h, column, 0, count, coefficients);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (plan.parts > 1) cluster_barrier();  // others may still read this block's totals
#endif
}

template <class T, int width, int pieces, bool channels_last>
Kernel by_held(const Plan& plan) {
  if constexpr (width > 1) {
    if (plan.held == 2) return once<T, width, 2, pieces, channels_last>;
    if (plan.held == 16) return once<T, width, 16, pieces, channels_last>;
  }
  return once<T, width, 8, pieces, channels_last>;
}

template <class T>
Kernel by_layout(const GroupNormSiluParams& p, const Plan& plan) {
  constexpr int kWidth = 16 / sizeof(T);
  if (plan.width == 1) {
    return p.channels_last ? by_held<T, 1, 1, true>(plan) : by_held<T, 1, 1, false>(plan);
  }
  if (!p.channels_last) return by_held<T, kWidth, 1, false>(plan);
  if (plan.pieces == 1) return by_held<T, kWidth, 1, true>(plan);
  if (plan.pieces == 2) return by_held<T, kWidth, 2, true>(plan);
  return by_held<T, kWidth, kWidth, true>(plan);
}

}  // namespace

Kernel once_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  switch (p.dtype) {
    case DType::float32:
      return by_layout<float>(p, plan);
    case DType::float16:
      return by_layout<__half>(p, plan);
    default:
      return by_layout<__nv_bfloat16>(p, plan);
  }
}

}  // namespace fastdiff
