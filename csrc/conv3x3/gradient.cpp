// The gradients of weight and bias by Winograd's tiles, block by block of output by input channels.
#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include "../common/blocks.h"
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

// Units of so many of `channels`.
Range times(std::int64_t unit, const Range& units, std::int64_t channels) {
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
  by_blocks({divide_up(p.out_channels, kFewRows), kMostRows / kFewRows},
            {divide_up(p.channels, kColumns), kMostColumns / kColumns},
            [&](const Range& rows, const Range& columns, Workspace& space) {
              gradient(p, times(kFewRows, rows, p.out_channels),
                       times(kColumns, columns, p.channels), space);
            });
}

}  // namespace fastdiff
