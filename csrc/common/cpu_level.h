// Which instructions the kernels may use on this processor.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDIFF_BY_LEVEL 1
#else
#define FASTDIFF_BY_LEVEL 0
#endif

namespace fastdiff {

// x86-64's levels, and the fourth with bfloat16.
enum class CpuLevel { baseline, v3, v4, v4_bf16 };

// The processor's, or a lower one that the environment's FASTDIFF_CPU_LEVEL names.
CpuLevel cpu_level();

// Whether it multiplies bfloat16 matrices by a unit of its own, Intel's AMX, and the system lets
// this process; only at the highest level.
bool has_matrix_unit();

}  // namespace fastdiff
