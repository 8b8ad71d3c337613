// G g G^T of every 3x3 kernel, laid out in panels as the convolution reads them.
#include <torch/csrc/stable/ops.h>

#include "tiles.h"

#define FASTDIFF_KERNELS "../conv3x3/packing_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void pack_conv3x3_cpu(const PackParams& p) {
  constexpr std::int64_t kRows = 16;  // of a panel that are worth a thread
  static const auto pack_for = FASTDIFF_FOR_THIS_PROCESSOR(pack);
  const std::int64_t parts = divide_up(p.rows, kRows);
  torch::stable::parallel_for(0, divide_up(p.columns, kPanel) * parts, 1,
                              [&](std::int64_t begin, std::int64_t end) {
                                for (std::int64_t i = begin; i < end; ++i) {
                                  pack_for(p, i / parts, Range{0, p.rows}.part(i % parts, parts));
                                }
                              });
}

}  // namespace fastdiff
