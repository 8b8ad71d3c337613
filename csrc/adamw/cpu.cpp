#include <algorithm>

#include "params.h"

#define FASTDIFF_KERNELS "../adamw/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void adamw_cpu(const AdamWTask& task) {
  static const auto update_for = FASTDIFF_FOR_THIS_PROCESSOR(kernel);
  update_for(task);
}

}  // namespace fastdiff
