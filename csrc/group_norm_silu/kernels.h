// The CUDA kernels by what they are compiled for.
#pragma once

#include <cstddef>

#include "gradient_plan.h"

namespace fastdiff {

using Kernel = void (*)(GroupNormSiluParams, Plan);

// choose(a value of the dtype).
template <class Choose>
auto by_dtype(DType dtype, const Choose& choose) {
  switch (dtype) {
    case DType::float32:
      return choose(0.0f);
    case DType::float16:
      return choose(__half{});
    default:
      return choose(__nv_bfloat16{});
  }
}

Kernel once_kernel(const GroupNormSiluParams& p, const Plan& plan);
Kernel statistics_kernel(const GroupNormSiluParams& p, const Plan& plan);
Kernel merge_kernel();
Kernel output_kernel(const GroupNormSiluParams& p, const Plan& plan);

using GradientKernel = void (*)(GroupNormSiluGradientParams, GradientPlan);

GradientKernel gradient_once_kernel(const GroupNormSiluGradientParams& p, const Plan& plan);
GradientKernel gradient_sums_kernel(const GroupNormSiluGradientParams& p, const Plan& plan);
GradientKernel gradient_merge_kernel();
GradientKernel gradient_output_kernel(const GroupNormSiluGradientParams& p, const Plan& plan);

}  // namespace fastdiff
