// Two launches, for slabs that no cluster holds: statistics of their parts, then the output.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

// Moments [sample][slab][part][group of the slab], to p.workspace.
template <class T, int width, int pieces, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, 3)
    statistics(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  const bool has_added = p.added.data != nullptr;
  if (has_added) {
    load_table(p, plan, part, shared);
    __syncthreads();
  }
  Added<width, channels_last> added(has_added, shared, column);
  const int count = column.count();
  float pivot[pieces] = {}, offset[pieces] = {};
  Sums<width, pieces> sums, squares;
  if (count > 0) {  // the middle of three values: near enough that later squares do not cancel
    float few[3][pieces];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int row = min(i, count - 1);
      added.turn_to(column, row);
      pivots_of<width>(load<T, width, with_residual>(p, column, row), added, few[i]);
    }
#pragma unroll
    for (int j = 0; j < pieces; ++j) {
      const float low = fminf(few[0][j], few[1][j]), high = fmaxf(few[0][j], few[1][j]);
      pivot[j] = fmaxf(low, fminf(high, few[2][j]));
    }
  }
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    added.turn_to(column, i);
    const auto v = load<T, width, with_residual>(p, column, i);
    sums.add(v, added, pivot);
    squares.add_squares(v, added, pivot);
  }
  Moments own[pieces];
  const float n = static_cast<float>(count * (width / pieces));
#pragma unroll
  for (int j = 0; j < pieces; ++j) {
    if (count > 0) offset[j] = fast_divide(sums.at[j], n);
    const float about_mean = squares.at[j] - sums.at[j] * offset[j];
    own[j] = moments_from(n, pivot[j], offset[j], about_mean < 0 ? 0 : about_mean);
  }
  merge_block<pieces>(
      p, plan, part, column, own, shared.scratch,
      static_cast<Moments*>(p.workspace) + static_cast<std::int64_t>(blockIdx.x) * plan.groups);
}

// A warp a group: its parts merged, in the place of part 0.
__global__ void __launch_bounds__(kThreads)
    merge_parts(const GroupNormSiluParams p, const Plan plan) {
  const unsigned index = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= p.batch * p.groups) return;
  const unsigned slab = index / plan.groups, group = index % plan.groups;
  auto* const moments = static_cast<Moments*>(p.workspace) +
                        static_cast<std::int64_t>(slab) * plan.parts * plan.groups + group;
  const float count = static_cast<float>(plan.rows) * plan.values_of_row;
  const Moments whole =
      merge(plan.parts, count, moments[0], [&](int i) { return moments[i * plan.groups]; });
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    moments[0] = finish(p, plan, Part(plan, slab * plan.parts), group, whole);
  }
}

// The last blocks come first: what they read was read last by `statistics` and is still in cache.
template <class T, int width, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, 3)
    output(const GroupNormSiluParams p, const Plan plan) {
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const Part part(plan, block);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  load_table(p, plan, part, shared);
  const auto* const moments = static_cast<const Moments*>(p.workspace) +
                              static_cast<std::int64_t>(block - part.part) * plan.groups;
  for (int i = threadIdx.x; i < plan.groups; i += blockDim.x) shared.finals(plan)[i] = moments[i];
  finish_table(p, plan, shared);
  const Coefficients<width, channels_last> coefficients(shared, column);
  const int count = column.count();
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    write<T, width>(p, load<T, width, with_residual>(p, column, i), column, i, coefficients);
  }
}

struct Both {
  Kernel statistics, output;
};

template <class T, int width, int pieces, bool channels_last>
Both by_residual(const GroupNormSiluParams& p) {
  if (p.residual != nullptr) {
    return {statistics<T, width, pieces, channels_last, true>,
            output<T, width, channels_last, true>};
  }
  return {statistics<T, width, pieces, channels_last, false>,
          output<T, width, channels_last, false>};
}

template <class T>
Both by_layout(const GroupNormSiluParams& p, const Plan& plan) {
  constexpr int kWidth = 16 / sizeof(T);
  if (plan.width == 1) {
    return p.channels_last ? by_residual<T, 1, 1, true>(p) : by_residual<T, 1, 1, false>(p);
  }
  if (!p.channels_last) return by_residual<T, kWidth, 1, false>(p);
  if (plan.pieces == 1) return by_residual<T, kWidth, 1, true>(p);
  if (plan.pieces == 2) return by_residual<T, kWidth, 2, true>(p);
  return by_residual<T, kWidth, 4, true>(p);
}

Both both(const GroupNormSiluParams& p, const Plan& plan) {
  return by_dtype(p.dtype, [&](auto zero) { return by_layout<decltype(zero)>(p, plan); });
}

}  // namespace

Kernel statistics_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  return both(p, plan).statistics;
}

Kernel merge_kernel() { return merge_parts; }

Kernel output_kernel(const GroupNormSiluParams& p, const Plan& plan) {
  return both(p, plan).output;
}

}  // namespace fastdiff
