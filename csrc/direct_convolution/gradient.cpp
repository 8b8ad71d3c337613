// Gradients of a 3x3 convolution's weight and bias in bfloat16 by a matrix unit. Every pixel of the
// kernel is a product, of the outputs' gradients by channel with x by position, over all positions.
#include <algorithm>
#include <cstring>

#include "../common/blocks.h"
#include "../common/cpu_vector.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kBlock = 32;                      // channels or positions
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

  explicit Positions(const DirectGradientParams& p)
      : width(p.width + 1),
        sample((p.height + 1) * width),
        blocks(divide_up(p.batch * sample, kBlock)),
        margin(divide_up(width + 1, kBlock)),
        row(((blocks + 2 * margin) | 1) * kBlock) {}

  // From a position of x to the output's that pixel `tap` of the kernel adds it to.
  std::int64_t distance(int tap) const { return (1 - tap / 3) * width + 1 - tap % 3; }
};

std::int64_t blocks_of(std::int64_t channels) { return divide_up(channels, kBlock); }

// Of x: [channels / 32, blocks, 2, 16, 16, 2], of the gradients: [out_channels, row].
std::int64_t x_size(const DirectGradientParams& p) {
  return blocks_of(p.channels) * Positions(p).blocks * kBlock * kBlock;
}

struct DirectGradient {
  // Copies a block of positions of x and of the gradients; there are some of the latter alone.
  void (*lay_out)(const DirectGradientParams&, std::int64_t block);
  void (*sum_up)(const DirectGradientParams&, const Range& outs, const Range& ins,
                 Workspace& space);
};

}  // namespace

std::int64_t DirectGradientParams::copies_size() const {
  return x_size(*this) + blocks_of(out_channels) * kBlock * Positions(*this).row;
}

}  // namespace fastdiff

#define FASTDIFF_KERNELS "../direct_convolution/gradient_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void direct_gradient_cpu(const DirectGradientParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(direct_gradient);
  const DirectGradient kernels = kernels_for(has_matrix_unit());
  const Positions positions(p);
  const auto lay_out = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) kernels.lay_out(p, i - positions.margin);
  };
  torch::stable::parallel_for(0, positions.blocks + 2 * positions.margin, 4, lay_out);
  by_blocks({blocks_of(p.out_channels), kMostRows}, {blocks_of(p.channels), kMostColumns},
            [&](const Range& outs, const Range& ins, Workspace& space) {
              kernels.sum_up(p, outs, ins, space);
            });
}

}  // namespace fastdiff
