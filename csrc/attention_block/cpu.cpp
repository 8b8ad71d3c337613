#include "../common/cpu_vector.h"
#include "params.h"

namespace fastdiff {
namespace {

template <class T>
FASTDIFF_INLINE void residual_sum(const ResidualSumParams& p, std::int64_t begin,
                                  std::int64_t end) {
  const T *x = static_cast<const T*>(p.x), *h = static_cast<const T*>(p.h);
  T* y = static_cast<T*>(p.y);
  const auto at = [&](std::int64_t i, int lanes) FASTDIFF_LAMBDA_INLINE {
    store(y + i, (load(x + i, lanes) + load(h + i, lanes)) * p.scale, lanes);
  };
  std::int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) at(i, kLanes);
  if (i < end) at(i, static_cast<int>(end - i));
}

}  // namespace

FASTDIFF_CPU_CLONES void residual_sum_cpu(const ResidualSumParams& p, std::int64_t begin,
                                          std::int64_t end) {
  for_dtype(p.dtype, [&](auto element) FASTDIFF_LAMBDA_INLINE {
    residual_sum<decltype(element)>(p, begin, end);
  });
}

}  // namespace fastdiff
