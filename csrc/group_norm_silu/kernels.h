// The CUDA kernels by what they are compiled for.
#pragma once

#include <cstddef>

#include "plan.h"

namespace fastdiff {

using Kernel = void (*)(GroupNormSiluParams, Plan);

Kernel once_kernel(const GroupNormSiluParams& p, const Plan& plan);
Kernel statistics_kernel(const GroupNormSiluParams& p, const Plan& plan);
Kernel merge_kernel();
Kernel output_kernel(const GroupNormSiluParams& p, const Plan& plan);

}  // namespace fastdiff
