// Tiles of 2x2 pixels are shared out among threads, and panels of channels where tiles are few.
// Every sum has one order, so the bits depend neither on the threads nor on the batch.
#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "../common/tasks.h"
#include "tiles.h"

namespace fastdiff {
namespace {

using Convolve = void (*)(const Conv3x3Params&, const Range& tiles, const Range& panels,
                          Workspace& space);

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../conv3x3/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void conv3x3_cpu(const Conv3x3Params& p) {
  static const auto convolve_for_dtype = FASTDIFF_FOR_THIS_PROCESSOR(convolve_for);
  const Convolve convolve = convolve_for_dtype(p.dtype);
  constexpr std::int64_t kTransformed = 128 * 1024;  // floats of V: half of a second-level cache
  const std::int64_t most = std::clamp<std::int64_t>(kTransformed / (16 * p.channels), 16, 36);
  const Tasks tasks(all_tiles(p).size(), most, p.out_channels, torch::stable::get_num_threads());
  in_parallel(tasks, [&](const Range& tiles, const Range& panels, Workspace& space) {
    convolve(p, tiles, panels, space);
  });
}

}  // namespace fastdiff
