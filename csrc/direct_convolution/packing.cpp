// Weights of float32 as direct_convolution multiplies them, where they change from call to call.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../common/cpu_vector.h"
#include "../common/work.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kBlock = 32;  // channels
constexpr int kTaps = 9;

std::int64_t blocks_of(std::int64_t channels) { return divide_up(channels, kBlock); }

}  // namespace

std::array<std::int64_t, 2> TilePackParams::blocks() const {
  const std::int64_t outs = blocks_of(out_channels), ins = blocks_of(channels);
  if (turned) return {ins, outs};
  return {outs, ins};
}

}  // namespace fastdiff

#define FASTDIFF_KERNELS "../direct_convolution/packing_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void pack_tiles_cpu(const TilePackParams& p) {
  static const auto pack = FASTDIFF_FOR_THIS_PROCESSOR(pack_pixel);
  const std::int64_t count = blocks_of(p.out_channels) * kTaps;
  torch::stable::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) pack(p, i / kTaps, static_cast<int>(i % kTaps));
  });
}

}  // namespace fastdiff
