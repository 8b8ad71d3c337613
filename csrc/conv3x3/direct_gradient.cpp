// Gradients of a 3x3 convolution's weight and bias in bfloat16 by a matrix unit. Every pixel of the
// kernel is a product, of the outputs' gradients by channel with x by position, over all positions.
#include <algorithm>
#include <cstring>

#include "../common/blocks.h"
#include "direct.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kMostRows = 2, kMostColumns = 4;  // blocks of output and input channels of
                                                         // a task, whose sums fill a quarter of a
                                                         // second-level cache
constexpr std::int64_t kSteps = 8;  // blocks of positions of a round, which lie in a first-level
                                    // cache for all nine products

// Positions of all samples in a row: a pixel of zeros ends every row of an image, and a row of them
// every image, so that a position's neighbours lie at one distance everywhere.
struct Positions {
  std::int64_t width, sample;  // of a row and of an image, with their zeros
  std::int64_t blocks;
  std::int64_t margin;  // blocks of zeros, of the gradients, before and after those
  std::int64_t row;     // elements of a channel's gradients: an odd number of cache lines, so that
                        // rows of a tile do not meet in the same sets

  explicit Positions(const Conv3x3GradientParams& p)
      : width(p.width + 1),
        sample((p.height + 1) * width),
        blocks(divide_up(p.batch * sample, kBlock)),
        margin(divide_up(width + 1, kBlock)),
        row(((blocks + 2 * margin) | 1) * kBlock) {}

  // From a position of x to the output's that pixel `tap` of the kernel adds it to.
  std::int64_t distance(int tap) const { return (1 - tap / 3) * width + 1 - tap % 3; }
};

// Of x: [channels / 32, blocks, 2, 16, 16, 2], of the gradients: [out_channels, row].
std::int64_t x_size(const Conv3x3GradientParams& p) {
  return blocks_of(p.channels) * Positions(p).blocks * kBlock * kBlock;
}

struct DirectGradient {
  // Copies a block of positions of x and of the gradients; there are some of the latter alone.
  void (*lay_out)(const Conv3x3GradientParams&, BFloat16* copies, std::int64_t block);
  void (*sum_up)(const Conv3x3GradientParams&, const BFloat16* copies, const Range& outs,
                 const Range& ins, Workspace& space);
};

}  // namespace

std::int64_t direct_gradient_room(const Conv3x3GradientParams& p) {
  return x_size(p) + blocks_of(p.out_channels) * kBlock * Positions(p).row;
}

}  // namespace fastdiff

#define FASTDIFF_KERNELS "../conv3x3/direct_gradient_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void conv3x3_direct_gradient_cpu(const Conv3x3GradientParams& p, void* room) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(direct_gradient);
  const DirectGradient kernels = kernels_for(has_matrix_unit());
  const Positions positions(p);
  auto* const copies = static_cast<BFloat16*>(room);
  const auto lay_out = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) kernels.lay_out(p, copies, i - positions.margin);
  };
  torch::stable::parallel_for(0, positions.blocks + 2 * positions.margin, 4, lay_out);
  by_blocks({blocks_of(p.out_channels), kMostRows}, {blocks_of(p.channels), kMostColumns},
            [&](const Range& outs, const Range& ins, Workspace& space) {
              kernels.sum_up(p, copies, outs, ins, space);
            });
}

}  // namespace fastdiff
