// Weights of float32 as direct_convolution multiplies them, where they change from call to call.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "direct.h"

namespace fastdiff {
namespace {

// Whether one column's rows lie nearer together than one row's columns.
bool rows_lie_together(const PackParams& p) {
  return std::abs(p.row_stride) <= std::abs(p.column_stride);
}

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../conv3x3/direct_packing_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void pack_conv3x3_direct_cpu(const PackParams& p) {
  static const auto pack = FASTDIFF_FOR_THIS_PROCESSOR(pack_pixel);
  const std::int64_t count = blocks_of(rows_lie_together(p) ? p.columns : p.rows) * kTaps;
  torch::stable::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) pack(p, i / kTaps, static_cast<int>(i % kTaps));
  });
}

}  // namespace fastdiff
