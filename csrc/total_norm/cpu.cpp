#include <algorithm>

#include "params.h"

#define FASTDIFF_KERNELS "../total_norm/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

double sum_of_squares_cpu(const SquaresTask& task) {
  static const auto sum_for = FASTDIFF_FOR_THIS_PROCESSOR(sum_of_squares);
  return sum_for(task);
}

}  // namespace fastdiff
