// Pixels are shared out among threads, and panels of channels where pixels are few. Every sum has
// one order, so the bits depend neither on the threads nor on the batch.
#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "../common/tasks.h"
#include "params.h"

namespace fastdiff {
namespace {

using Convolve = void (*)(const Conv1x1Params&, const Range& pixels, const Range& panels,
                          Workspace& space);

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../conv1x1/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void conv1x1_cpu(const Conv1x1Params& p) {
  static const auto for_dtype = FASTDIFF_FOR_THIS_PROCESSOR(convolve_pixels_for);
  const Convolve convolve = for_dtype(p.dtype);
  constexpr std::int64_t kGathered = 64 * 1024;  // floats of V: half of a small second-level cache
  const std::int64_t most = std::clamp<std::int64_t>(kGathered / p.channels, 16, 64);
  const Tasks tasks(p.batch * p.height * p.width, most, p.out_channels,
                    torch::stable::get_num_threads());
  in_parallel(tasks, [&](const Range& pixels, const Range& panels, Workspace& space) {
    convolve(p, pixels, panels, space);
  });
}

}  // namespace fastdiff
