// Blocks of output by input channels are shared out among threads; each goes through all tiles, so
// every sum has one order, and the bits do not depend on the threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include "tiles.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kTiles = 64;                  // transformed at a time
constexpr std::int64_t kMostRows = 64;               // output channels of a task
constexpr std::int64_t kMostColumns = 128;           // input channels of a task
constexpr std::int64_t kColumns = 32, kFewRows = 8;  // of a task that many threads want

// Rows a little longer than a power of two do not meet in the same sets of the cache.
constexpr std::int64_t kRowStride = kMostRows + 16, kColumnStride = kMostColumns + 16;
constexpr std::int64_t kWorkspace =
    16 * kMostRows * kMostColumns + kMostRows + 16 * kTiles * (kRowStride + kColumnStride);

using Gradient = void (*)(const Conv3x3GradientParams&, const Range& outs, const Range& ins,
                          Workspace& space);

// Tiles whose products make one sum; a sum of those sums rounds least with as many of each.
inline std::int64_t chain_of(std::int64_t tiles) {
  const auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(tiles)));
  return std::clamp<std::int64_t>(root, 8, kTiles);
}

// `channels` in parts that begin at multiples of `unit`.
Range part(std::int64_t channels, std::int64_t unit, std::int64_t i, std::int64_t parts) {
  const Range units = Range{0, divide_up(channels, unit)}.part(i, parts);
  return {units.first * unit, std::min(units.last * unit, channels)};
}

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../conv3x3/gradient_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void conv3x3_gradient_cpu(const Conv3x3GradientParams& p) {
  static const auto gradient_for_dtype = FASTDIFF_FOR_THIS_PROCESSOR(gradient_for);
  const Gradient gradient = gradient_for_dtype(p.dtype);
  const std::int64_t threads = torch::stable::get_num_threads();
  std::int64_t rows = divide_up(divide_up(p.out_channels, kMostRows), threads) * threads;
  rows = std::min(rows, divide_up(p.out_channels, kFewRows));
  std::int64_t columns = std::max(divide_up(p.channels, kMostColumns), divide_up(threads, rows));
  columns = std::min(columns, divide_up(p.channels, kColumns));
  torch::stable::parallel_for(0, rows * columns, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace space;
    for (std::int64_t task = begin; task < end; ++task) {
      gradient(p, part(p.out_channels, kFewRows, task / columns, rows),
               part(p.channels, kColumns, task % columns, columns), space);
    }
  });
}

}  // namespace fastdiff
