// One launch that reads once: a slab stays in the registers of a block, or of a cluster of blocks
// that exchange their statistics.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

// The moments of whole groups, of the blocks of a cluster; every block comes to the same bits.
__device__ __forceinline__ void merge_cluster(const GroupNormSiluParams& p, const Plan& plan,
                                              const Part& part, const Shared& shared) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (plan.parts > 1) cluster_barrier();
#endif
  __syncwarp();  // each warp reads what it wrote, or what a barrier stands before
  const int lane = threadIdx.x % kWarp;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    Moments total = shared.totals[group];
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (plan.parts > 1) {
      const float count = static_cast<float>(plan.rows) * plan.values_of_row;
      const int rank = min(lane, plan.parts - 1);
      const float* theirs = &shared.totals[group].count;
      const Moments read{read_of_cluster(theirs, rank), read_of_cluster(theirs + 1, rank),
                         read_of_cluster(theirs + 2, rank), read_of_cluster(theirs + 3, rank)};
      total = merge(plan.parts, count, of_first_lane(read), [&](int) { return read; });
    }
#endif
    if (lane == 0) shared.finals(plan)[group] = finish(p, plan, part, group, total);
  }
}

template <class T, int width, int held, int pieces, bool channels_last>
__global__ void __launch_bounds__(kThreads, held > 8 ? 1 : 2)
    once(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  const int count = column.count();
  Held<T, width, held, false> h;
  h.load(p, column, 0, count);
  load_table(p, plan, part, shared);
  const bool has_added = p.added.data != nullptr;
  if (has_added) __syncthreads();
  Moments own[pieces];
  {
    const Added<width, held, channels_last> added(has_added, shared, column, 0, count);
    float pivot[pieces], offset[pieces] = {}, squares[pieces] = {};
    pivots_of<width>(h, added, count, pivot);
    sum_of<width, held>(h, added, count, pivot, offset);
    const float n = static_cast<float>(count * (width / pieces));
#pragma unroll
    for (int i = 0; i < pieces; ++i) offset[i] = count > 0 ? fast_divide(offset[i], n) : 0.0f;
    h.forget();
    squares_of<width, held>(h, added, count, pivot, offset, squares);
#pragma unroll
    for (int i = 0; i < pieces; ++i) own[i] = moments_from(n, pivot[i], offset[i], squares[i]);
    h.forget();
  }
  merge_block<pieces>(p, plan, part, column, own, shared.scratch, shared.totals);
  merge_cluster(p, plan, part, shared);
  finish_table(p, plan, shared);
  const Coefficients<width, channels_last> coefficients(shared, column);
  write<T, width, held>(p, h, column, 0, count, coefficients);
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
  return by_held<T, kWidth, 4, true>(plan);
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
