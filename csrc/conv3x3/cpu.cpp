// Tiles of 2x2 pixels are shared out among threads, and panels of channels where tiles are few.
// Every sum has one order, so the bits depend neither on the threads nor on the batch.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "tiles.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kChunk = 128;  // input channels whose products are summed up at a time

inline std::int64_t chunks(std::int64_t channels) { return divide_up(channels, kChunk); }

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
  const std::int64_t threads = torch::stable::get_num_threads();
  const Range tiles = all_tiles(p);
  const Range panels{0, divide_up(p.out_channels, kPanel)};
  const std::int64_t most = std::clamp<std::int64_t>(kTransformed / (16 * p.channels), 16, 36);
  std::int64_t blocks = divide_up(tiles.size(), most), groups = 1;
  if (blocks >= threads) {
    blocks = divide_up(blocks, threads) * threads;
  } else {
    groups = std::min(panels.size(), threads / blocks);
    blocks = std::max(blocks, std::min(threads / groups, tiles.size() / 8));
  }
  torch::stable::parallel_for(0, blocks * groups, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace space;
    for (std::int64_t task = begin; task < end; ++task) {
      convolve(p, tiles.part(task / groups, blocks), panels.part(task % groups, groups), space);
    }
  });
}

}  // namespace fastdiff
