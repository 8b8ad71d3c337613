// Statistics by tile, merged in a fixed order, so the result does not depend on the threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <type_traits>

#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kRunTile = 4096;    // elements of a contiguous group
constexpr std::int64_t kPixelTile = 64;    // pixels of a channels-last sample
constexpr std::int64_t kTaskWork = 16384;  // elements that are worth a thread

// Sums of d = x - center over some elements.
struct TileSums {
  double center, d, d_squared;
};

// Mean and variance of many tiles, in float64 about the first tile's center.
struct Moments {
  double origin = 0, count = 0, first = 0, second = 0;

  // `added` is what all elements of the tile are to be raised by.
  void add(const TileSums& tile, double n, double added) {
    if (count == 0) origin = tile.center + added;
    const double offset = tile.d / n;
    const double mean = tile.center + added - origin + offset;
    count += n;
    first += n * mean;
    second += tile.d_squared - tile.d * offset + n * mean * mean;
  }
  double mean() const { return origin + first / count; }
  double variance() const { return second / count - first / count * (first / count); }
};

struct Channels {
  std::int64_t first, count;
};

// Rows of channels: y = act((x - center) * slope + offset).
struct Coefficients {
  float *center, *slope, *offset;
};

// What one thread needs for `n` channels of one sample.
class Rows {
  const std::unique_ptr<float[]> floats_;
  const std::unique_ptr<double[]> doubles_;

 public:
  explicit Rows(std::int64_t n) : floats_(new float[8 * n]), doubles_(new double[3 * n]) {
    float* row = floats_.get();
    for (float** f : {&weight, &bias, &scale, &shift, &added, &coefficients.center,
                      &coefficients.slope, &coefficients.offset}) {
      *f = row, row += n;
    }
    mean = doubles_.get(), rstd = mean + n, second = rstd + n;
  }
  float *weight, *bias, *scale, *shift, *added;
  Coefficients coefficients;
  double *mean, *rstd, *second;
};

// Some pixels of a channels-last sample, from element `element` of x on.
struct Tile {
  std::int64_t element, pixels;
};

struct Kernels {
  void (*slabs)(const GroupNormSiluParams&, std::int64_t begin, std::int64_t end);
  void (*centers)(const GroupNormSiluParams&, std::int64_t sample, float* center);
  void (*sum_tile)(const GroupNormSiluParams&, const Tile&, const float* center, float* sums);
  void (*merge)(const GroupNormSiluParams&, std::int64_t sample, const float* center,
                const float* sums, std::int64_t tiles, const Rows&, const Coefficients&);
  void (*output_tile)(const GroupNormSiluParams&, const Tile&, const Coefficients&);
};

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../group_norm_silu/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {
namespace {

template <class F>
void parallel(std::int64_t tasks, std::int64_t elements_per_task, const F& f) {
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskWork / elements_per_task);
  torch::stable::parallel_for(0, tasks, grain, f);
}

// The stages of one channels-last call, each of which any thread may do for any sample or tile.
class ChannelsLast {
  const GroupNormSiluParams& p_;
  const Kernels& kernels_;
  const std::int64_t C_ = p_.channels, tiles_ = (p_.spatial + kPixelTile - 1) / kPixelTile;
  const std::unique_ptr<float[]> centers_{new float[p_.batch * C_]};
  const std::unique_ptr<float[]> sums_{new float[p_.batch * tiles_ * 2 * C_]};
  const std::unique_ptr<float[]> coefficients_{new float[p_.batch * 3 * C_]};

  Tile tile(std::int64_t i) const {
    const std::int64_t first = i % tiles_ * kPixelTile;
    return {(i / tiles_ * p_.spatial + first) * C_, std::min(kPixelTile, p_.spatial - first)};
  }
  Coefficients coefficients(std::int64_t sample) const {
    float* row = coefficients_.get() + sample * 3 * C_;
    return {row, row + C_, row + 2 * C_};
  }

 public:
  ChannelsLast(const GroupNormSiluParams& p, const Kernels& kernels) : p_(p), kernels_(kernels) {}

  std::int64_t tiles() const { return tiles_; }  // of a sample

  void center(std::int64_t sample) const {
    kernels_.centers(p_, sample, centers_.get() + sample * C_);
  }
  void sum(std::int64_t i) const {
    kernels_.sum_tile(p_, tile(i), centers_.get() + i / tiles_ * C_, sums_.get() + i * 2 * C_);
  }
  void merge(std::int64_t sample, const Rows& rows) const {
    kernels_.merge(p_, sample, centers_.get() + sample * C_, sums_.get() + sample * tiles_ * 2 * C_,
                   tiles_, rows, coefficients(sample));
  }
  void output(std::int64_t i) const { kernels_.output_tile(p_, tile(i), coefficients(i / tiles_)); }
};

void channels_last(const GroupNormSiluParams& p, const Kernels& kernels) {
  const ChannelsLast stages(p, kernels);
  const std::int64_t tiles = stages.tiles();
  if (p.batch >= torch::stable::get_num_threads()) {  // a sample stays in its thread's cache
    parallel(p.batch, p.channels * p.spatial, [&](std::int64_t begin, std::int64_t end) {
      const Rows rows(p.channels);
      for (std::int64_t n = begin; n < end; ++n) {
        stages.center(n);
        for (std::int64_t i = n * tiles; i < (n + 1) * tiles; ++i) stages.sum(i);
        stages.merge(n, rows);
        for (std::int64_t i = n * tiles; i < (n + 1) * tiles; ++i) stages.output(i);
      }
    });
    return;
  }
  for (std::int64_t n = 0; n < p.batch; ++n) stages.center(n);
  parallel(p.batch * tiles, p.channels * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) stages.sum(i);
  });
  const Rows rows(p.channels);
  for (std::int64_t n = 0; n < p.batch; ++n) stages.merge(n, rows);
  parallel(p.batch * tiles, p.channels * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) stages.output(i);
  });
}

}  // namespace

void group_norm_silu_cpu(const GroupNormSiluParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(kernels);
  const Kernels kernels = kernels_for(p.dtype, p.residual != nullptr);
  if (p.channels_last) return channels_last(p, kernels);
  parallel(p.batch * p.groups, p.channels / p.groups * p.spatial,
           [&](std::int64_t begin, std::int64_t end) { kernels.slabs(p, begin, end); });
}

}  // namespace fastdiff
