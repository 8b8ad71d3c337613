// Convolution in bfloat16 by a matrix unit: a product for each pixel of the kernel, of an image
// that has a border of zeros, so that neighbours lie at one distance everywhere.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../common/cpu_vector.h"
#include "../common/work.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kDepth = 32;  // channels are filled up to a multiple
constexpr std::int64_t kPanel = 32;  // output channels
constexpr std::int64_t kTile = 16;   // positions

// A sample with its border, so that the pixels that a position sums lie at one distance from it
// everywhere: (y, x) is at y * width + x, and they are from there on.
struct Bordered {
  std::int64_t channels, width, height;
  bool in_place;       // x is used as it lies
  std::int64_t pixel;  // elements to the next: if copied, an odd number of cache lines, so that
                       // rows of a tile do not meet in the same sets
  std::int64_t tiles;  // of 16 positions; where they do not fit a row they go on through the border
  std::int64_t tiles_of_row;  // 0 where they do not fit

  explicit Bordered(const DirectConvolutionParams& p)
      : channels(divide_up(p.channels, kDepth) * kDepth),
        width(p.width + p.kernel - 1),
        height(p.height + p.kernel - 1) {
    const bool even = p.height * p.width % kTile == 0 && p.x.row == p.width * p.x.pixel;
    const bool plain = p.kernel == 1 && !p.upsample && p.patches.channels == 0;
    in_place = plain && channels == p.channels && even;
    pixel = in_place ? p.x.pixel : (channels / kDepth | 1) * kDepth;
    const bool fit = p.kernel > 1 && p.width % kTile == 0;
    tiles = fit ? p.height * p.width / kTile : divide_up(p.height * width - (p.kernel - 1), kTile);
    tiles_of_row = fit ? p.width / kTile : 0;
  }
  std::int64_t row() const { return width * pixel; }
  std::int64_t size() const { return height * row(); }
  std::int64_t position(std::int64_t tile) const {
    if (tiles_of_row == 0) return tile * kTile;
    return tile / tiles_of_row * width + tile % tiles_of_row * kTile;
  }
};

struct Direct {
  void (*border_row)(const DirectConvolutionParams&, std::int64_t sample, std::int64_t row,
                     BFloat16* to);
  void (*convolve_panel)(const DirectConvolutionParams&, std::int64_t sample, std::int64_t panel,
                         const Range& tiles, const BFloat16* image, bool next);
};

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../direct_convolution/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {
namespace {

BFloat16* images(Workspace& space, const DirectConvolutionParams& p, std::int64_t samples) {
  // The last tile may reach beyond its sample.
  const std::int64_t elements = samples * Bordered(p).size() + kTile * Bordered(p).pixel;
  return reinterpret_cast<BFloat16*>(space.at_least(divide_up(elements, 2)));
}

const BFloat16* sample_of(const DirectConvolutionParams& p, std::int64_t sample) {
  return static_cast<const BFloat16*>(p.x.data) + sample * p.x.sample;
}

// Every thread takes some samples, as many at a time as leave room for weights in its cache.
void by_samples(const DirectConvolutionParams& p, const Direct& kernels) {
  const Bordered image(p);
  const std::int64_t most = std::max<std::int64_t>(1, kImagesInCache / image.size());
  const std::int64_t panels = divide_up(p.out_channels, kPanel);
  torch::stable::parallel_for(0, p.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace space;
    for (std::int64_t first = begin; first < end; first += most) {
      const std::int64_t count = std::min(most, end - first);
      BFloat16* to = image.in_place ? nullptr : images(space, p, count);
      for (std::int64_t i = 0; to && i < count * image.height; ++i) {
        kernels.border_row(p, first + i / image.height, i % image.height, to + i * image.row());
      }
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        for (std::int64_t i = 0; i < count; ++i) {
          const BFloat16* from = to ? to + i * image.size() : sample_of(p, first + i);
          const bool next = i == 0 && panel + 1 < panels;
          kernels.convolve_panel(p, first + i, panel, {0, image.tiles}, from, next);
        }
      }
    }
  });
}

// Threads share out a sample's panels, and positions where panels are few.
void by_panels(const DirectConvolutionParams& p, const Direct& kernels) {
  static thread_local Workspace space;
  const Bordered image(p);
  BFloat16* to = image.in_place ? nullptr : images(space, p, 1);
  const std::int64_t panels = divide_up(p.out_channels, kPanel);
  const std::int64_t pairs = divide_up(image.tiles, 2);
  const std::int64_t threads = torch::stable::get_num_threads();
  const std::int64_t parts = std::min(pairs, divide_up(threads, panels));
  const std::int64_t grain = divide_up(16384, image.row());
  for (std::int64_t sample = 0; sample < p.batch; ++sample) {
    const auto border = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        kernels.border_row(p, sample, i, to + i * image.row());
      }
    };
    if (to) torch::stable::parallel_for(0, image.height, grain, border);
    const BFloat16* from = to ? to : sample_of(p, sample);
    torch::stable::parallel_for(0, panels * parts, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const Range part = Range{0, pairs}.part(i % parts, parts);
        const Range tiles{2 * part.first, std::min(2 * part.last, image.tiles)};
        const bool next = i + 1 < end && (i + 1) % parts == 0;
        kernels.convolve_panel(p, sample, i / parts, tiles, from, next);
      }
    });
  }
}

}  // namespace

void direct_convolution_cpu(const DirectConvolutionParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(direct);
  const Direct kernels = kernels_for(p.kernel, has_matrix_unit());
  p.batch >= torch::stable::get_num_threads() ? by_samples(p, kernels) : by_panels(p, kernels);
}

}  // namespace fastdiff
