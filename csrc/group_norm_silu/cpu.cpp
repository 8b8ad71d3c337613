// Statistics by tile, merged in a fixed order, so the result does not depend on the threads.
#include <array>
#include <cmath>

#include "cpu_stages.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kRunTile = 4096;  // elements of a contiguous group

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

class Stages {
  const GroupNormSiluParams& p_;
  const Kernels& kernels_;
  const std::int64_t C_ = p_.channels;
  const Tiles tiles_{C_, p_.spatial};
  const std::unique_ptr<float[]> centers_{new float[p_.batch * C_]};
  const std::unique_ptr<float[]> sums_{new float[p_.batch * tiles_.of_sample * 2 * C_]};
  const std::unique_ptr<float[]> coefficients_{new float[p_.batch * 3 * C_]};

  Coefficients coefficients(std::int64_t sample) const {
    float* row = coefficients_.get() + sample * 3 * C_;
    return {row, row + C_, row + 2 * C_};
  }
  float* center(std::int64_t sample) const { return centers_.get() + sample * C_; }
  float* sums(std::int64_t tile) const { return sums_.get() + tile * 2 * C_; }

 public:
  Stages(const GroupNormSiluParams& p, const Kernels& kernels) : p_(p), kernels_(kernels) {}

  void begin(std::int64_t sample, const Rows&) const {
    kernels_.centers(p_, sample, center(sample));
  }
  void sum(std::int64_t i) const {
    kernels_.sum_tile(p_, tiles_[i], center(i / tiles_.of_sample), sums(i));
  }
  void merge(std::int64_t sample, const Rows& rows) const {
    kernels_.merge(p_, sample, center(sample), sums(sample * tiles_.of_sample), tiles_.of_sample,
                   rows, coefficients(sample));
  }
  void output(std::int64_t i) const {
    kernels_.output_tile(p_, tiles_[i], coefficients(i / tiles_.of_sample));
  }
};

}  // namespace

void group_norm_silu_cpu(const GroupNormSiluParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(kernels);
  const Kernels kernels = kernels_for(p.dtype, p.residual != nullptr);
  if (p.channels_last) return channels_last(p, Stages(p, kernels));
  parallel(p.batch * p.groups, p.channels / p.groups * p.spatial,
           [&](std::int64_t begin, std::int64_t end) { kernels.slabs(p, begin, end); });
}

}  // namespace fastdiff
