// Compiles the file FASTDIFF_KERNELS once for each kind of x86-64, each time in a namespace of its
// own; FASTDIFF_FOR_THIS_PROCESSOR(name) is what `name` means in the best of them. All sources
// share these namespaces: no two may give an inline function the same name and parameters.
#include <cmath>
#include <type_traits>

#include "cpu_level.h"
#include "cpu_vector.h"

#if FASTDIFF_BY_LEVEL
#include <immintrin.h>

#pragma GCC diagnostic push  // GCC's own intrinsics leave what they do not use unset
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,bmi,bmi2")
#define FASTDIFF_LEVEL 5
namespace fastdiff::v4_bf16 {
#include "cpu_lanes_avx512.h"
#include FASTDIFF_KERNELS
}  // namespace fastdiff::v4_bf16
#undef FASTDIFF_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,bmi,bmi2")
#define FASTDIFF_LEVEL 4
namespace fastdiff::v4 {
#include "cpu_lanes_avx512.h"
#include FASTDIFF_KERNELS
}  // namespace fastdiff::v4
#undef FASTDIFF_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define FASTDIFF_LEVEL 3
namespace fastdiff::v3 {
#include "cpu_lanes.h"
#include FASTDIFF_KERNELS
}  // namespace fastdiff::v3
#undef FASTDIFF_LEVEL
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

#define FASTDIFF_LEVEL 1
namespace fastdiff::baseline {
#include "cpu_lanes.h"
#include FASTDIFF_KERNELS
}  // namespace fastdiff::baseline
#undef FASTDIFF_LEVEL

#if FASTDIFF_BY_LEVEL
#define FASTDIFF_FOR_THIS_PROCESSOR(name)           \
  (cpu_level() >= CpuLevel::v4_bf16 ? v4_bf16::name \
   : cpu_level() == CpuLevel::v4    ? v4::name      \
   : cpu_level() == CpuLevel::v3    ? v3::name      \
                                    : baseline::name)
#else
#define FASTDIFF_FOR_THIS_PROCESSOR(name) baseline::name
#endif
