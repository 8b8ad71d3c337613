// How the output and its gradient are taken in parts, any of them by any thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "params.h"

namespace fastdiff {

constexpr std::int64_t kPixelTile = 64;  // pixels of a channels-last sample

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
  explicit Rows(std::int64_t n) : floats_(new float[8 * n]), doubles_(new double[5 * n]) {
    float* row = floats_.get();
    for (float** f : {&weight, &bias, &scale, &shift, &added, &coefficients.center,
                      &coefficients.slope, &coefficients.offset}) {
      *f = row, row += n;
    }
    double* wide = doubles_.get();
    for (double** d : {&mean, &rstd, &sums[0], &sums[1], &sums[2]}) *d = wide, wide += n;
  }
  float *weight, *bias, *scale, *shift, *added;
  Coefficients coefficients;
  double *mean, *rstd, *sums[3];
};

// Some pixels of a channels-last sample, from element `element` of x on.
struct Tile {
  std::int64_t element, pixels;
};

struct Tiles {
  std::int64_t channels, spatial, of_sample = (spatial + kPixelTile - 1) / kPixelTile;

  Tile operator[](std::int64_t i) const {
    const std::int64_t first = i % of_sample * kPixelTile;
    return {(i / of_sample * spatial + first) * channels, std::min(kPixelTile, spatial - first)};
  }
};

template <class F>
void parallel(std::int64_t tasks, std::int64_t elements_per_task, const F& f) {
  constexpr std::int64_t kTaskWork = 16384;  // elements that are worth a thread
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskWork / elements_per_task);
  torch::stable::parallel_for(0, tasks, grain, f);
}

// `stages` has begin and merge for a sample, sum before merge and output after it for a tile; merge
// finds in the rows what begin left there.
template <class Stages>
void channels_last(const GroupNormSiluParams& p, const Stages& stages) {
  const std::int64_t tiles = Tiles{p.channels, p.spatial}.of_sample;
  if (p.batch >= torch::stable::get_num_threads()) {  // a sample stays in its thread's cache
    parallel(p.batch, p.channels * p.spatial, [&](std::int64_t begin, std::int64_t end) {
      const Rows rows(p.channels);
      for (std::int64_t n = begin; n < end; ++n) {
        stages.begin(n, rows);
        for (std::int64_t i = n * tiles; i < (n + 1) * tiles; ++i) stages.sum(i);
        stages.merge(n, rows);
        for (std::int64_t i = n * tiles; i < (n + 1) * tiles; ++i) stages.output(i);
      }
    });
    return;
  }
  const Rows rows(p.channels);
  for (std::int64_t n = 0; n < p.batch; ++n) stages.begin(n, rows);
  parallel(p.batch * tiles, p.channels * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) stages.sum(i);
  });
  for (std::int64_t n = 0; n < p.batch; ++n) stages.begin(n, rows), stages.merge(n, rows);
  parallel(p.batch * tiles, p.channels * kPixelTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) stages.output(i);
  });
}

}  // namespace fastdiff
