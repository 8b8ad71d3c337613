// One launch that reads once: a slab stays in the shared memory of a block, or of a cluster of
// blocks that exchange their statistics.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

// The moments of whole groups, of the blocks of a cluster; every block comes to the same bits.
__device__ __forceinline__ void merge_cluster(const GroupNormSiluParams& p, const Plan& plan,
                                              const Part& part, const Shared& shared) {
  if (plan.parts > 1) cluster_barrier();
  __syncwarp();  // each warp reads what it wrote, or what a barrier stands before
  const int lane = threadIdx.x % kWarp;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    Moments total = shared.totals[group];
    if (plan.parts > 1) {
      const float count = static_cast<float>(plan.rows) * plan.values_of_row;
      const int rank = min(lane, plan.parts - 1);
      const float* theirs = &shared.totals[group].count;
      const Moments read{read_of_cluster(theirs, rank), read_of_cluster(theirs + 1, rank),
                         read_of_cluster(theirs + 2, rank), read_of_cluster(theirs + 3, rank)};
      total = merge(plan.parts, count, of_first_lane(read), [&](int) { return read; });
    }
    if (lane == 0) shared.finals(plan)[group] = finish(p, plan, part, group, total);
  }
}

// Of a thread's vectors, by two passes.
template <int width, int pieces, class S, class C, class A>
__device__ __forceinline__ void moments_of(const S& slots, const C& column, int count, A& added,
                                           Moments (&own)[pieces]) {
  float pivot[pieces] = {}, center[pieces];
  Sums<width, pieces> sums, squares;
  if (count > 0) {
    added.turn_to(column, 0);
    pivots_of<width>(slots[0], added, pivot);
  }
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    added.turn_to(column, i);
    sums.add(slots[i], added, pivot);
  }
  const float n = static_cast<float>(count * (width / pieces));
#pragma unroll
  for (int j = 0; j < pieces; ++j) {
    sums.at[j] = count > 0 ? fast_divide(sums.at[j], n) : 0.0f;
    center[j] = pivot[j] + sums.at[j];
  }
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    added.turn_to(column, i);
    squares.add_squares(slots[i], added, center);
  }
#pragma unroll
  for (int j = 0; j < pieces; ++j) own[j] = moments_from(n, pivot[j], sums.at[j], squares.at[j]);
}

template <class T, int width, int pieces, bool channels_last>
__global__ void __launch_bounds__(kThreads, 3) once(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  const int count = column.count();
  const Slots<T, width> slots(shared.slots);
  slots.request(p.x, column, count);
  load_table(p, plan, part, shared);
  const bool has_added = p.added.data != nullptr;
  if (has_added) __syncthreads();
  Added<width, channels_last> added(has_added, shared, column);
  wait_copies<0>();
  Moments own[pieces];
  moments_of<width>(slots, column, count, added, own);
  merge_block<pieces>(p, plan, part, column, own, shared.scratch, shared.totals);
  merge_cluster(p, plan, part, shared);
  finish_table(p, plan, shared);
  const Coefficients<width, channels_last> coefficients(shared, column);
#pragma unroll 2
  for (int i = 0; i < count; ++i) write<T, width>(p, slots[i], column, i, coefficients);
  if (plan.parts > 1) cluster_barrier();  // others may still read this block's totals
}

template <class T>
Kernel by_layout(const GroupNormSiluParams& p, const Plan& plan) {
  constexpr int kWidth = 16 / sizeof(T);
  if (plan.width == 1) {
    return p.channels_last ? once<T, 1, 1, true> : once<T, 1, 1, false>;
  }
  if (!p.channels_last) return once<T, kWidth, 1, false>;
  if (plan.pieces == 1) return once<T, kWidth, 1, true>;
  if (plan.pieces == 2) return once<T, kWidth, 2, true>;
  return once<T, kWidth, 4, true>;
}

}  // namespace

Kernel once_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  return by_dtype(p.dtype, [&](auto zero) { return by_layout<decltype(zero)>(p, plan); });
}

}  // namespace fastdiff
