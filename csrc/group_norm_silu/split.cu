// Two launches, for slabs that no cluster holds: statistics of their parts, then the output.
#include "block.h"
#include "kernels.h"

namespace fastdiff {
namespace {

constexpr int kHeld = 4;

// Moments [sample][slab][part][group of the slab], to p.workspace.
template <class T, int width, int held, int pieces, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, 2)
    statistics(const GroupNormSiluParams p, const Plan plan) {
  const Part part(plan, blockIdx.x);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  const bool has_added = p.added.data != nullptr;
  if (has_added) {
    load_table(p, plan, part, shared);
    __syncthreads();
  }
  const int total = column.count();
  float pivot[pieces] = {}, sum[pieces] = {}, squares[pieces] = {};
  for (int from = 0; from < total; from += held) {
    const int count = min(held, total - from);
    Held<T, width, held, with_residual> h;
    h.load(p, column, from, count);
    const Added<width, held, channels_last> added(has_added, shared, column, from, count);
    if (from == 0) {  // the mean of the first rows: near enough that later squares do not cancel
      pivots_of<width>(h, added, count, pivot);
      sum_of<width, held>(h, added, count, pivot, sum);
#pragma unroll
      for (int i = 0; i < pieces; ++i) {
        pivot[i] += fast_divide(sum[i], static_cast<float>(count * (width / pieces)));
        sum[i] = 0;
      }
    }
    sum_of<width, held>(h, added, count, pivot, sum);
    const float nothing[pieces] = {};
    squares_of<width, held>(h, added, count, pivot, nothing, squares);
  }
  Moments own[pieces];
  const float n = static_cast<float>(total * (width / pieces));
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    const float offset = total > 0 ? fast_divide(sum[i], n) : 0.0f;
    const float about_mean = squares[i] - sum[i] * offset;
    own[i] = moments_from(n, pivot[i], offset, about_mean < 0 ? 0 : about_mean);
  }
  merge_block<pieces>(
      p, plan, part, column, own, shared.scratch,
      static_cast<Moments*>(p.workspace) + static_cast<std::int64_t>(blockIdx.x) * plan.groups);
}

// The last blocks come first: what they read was read last by `statistics` and is still in cache.
template <class T, int width, int held, bool channels_last, bool with_residual>
__global__ void __launch_bounds__(kThreads, with_residual ? 1 : 2)
    output(const GroupNormSiluParams p, const Plan plan) {
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const Part part(plan, block);
  const Shared shared(plan);
  const Column<width, channels_last> column(p, plan, part);
  const int total = column.count();
  Held<T, width, held, with_residual> h;
  h.load(p, column, 0, min(held, total));
  load_table(p, plan, part, shared);
  const auto* const moments = static_cast<const Moments*>(p.workspace) +
                              static_cast<std::int64_t>(block - part.part) * plan.groups;
  const float count = static_cast<float>(plan.rows) * plan.values_of_row;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    const Moments whole = merge(plan.parts, count, moments[group],
                                [&](int i) { return moments[i * plan.groups + group]; });
    if (threadIdx.x % kWarp == 0) {
      shared.finals(plan)[group] = finish(p, plan, part, group, whole);
    }
  }
  finish_table(p, plan, shared);
  const Coefficients<width, channels_last> coefficients(shared, column);
  for (int from = 0; from < total; from += held) {
    const int count_here = min(held, total - from);
    if (from > 0) h.load(p, column, from, count_here);
    write<T, width, held>(p, h, column, from, count_here, coefficients);
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
  if (plan.pieces == 2) return by_residual<T, kWidth, 2, true>(p);
  return by_residual<T, kWidth, 4, true>(p);
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
