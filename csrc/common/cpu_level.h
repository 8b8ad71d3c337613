// Which instructions the kernels may use on this processor.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTDIFF_BY_LEVEL 1
#else
#define FASTDIFF_BY_LEVEL 0
#endif

namespace fastdiff {

// x86-64's levels, the fourth with bfloat16, and that with Intel's unit for matrices.
enum class CpuLevel { baseline, v3, v4, v4_bf16, v4_amx };

// The processor's, or a lower one that the environment's FASTDIFF_CPU_LEVEL names.
CpuLevel cpu_level();

inline bool has_matrix_unit() { return cpu_level() == CpuLevel::v4_amx; }

}  // namespace fastdiff
