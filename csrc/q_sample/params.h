#pragma once

#include "../common/strided.h"

namespace fastdiff {

// x_t = a_x * x_start + a_z * z and target = y_x * x_start + y_z * z, coefficients by sample.
struct QSampleParams {
  Strided x_start, noise;  // noise null: z comes from Philox
  Strided x_t, z, target;  // z and target null where not asked for
  Runs runs;
  const double* table;  // [T, 4]
  BySample t, sample_index, draw;
  std::uint64_t seed;
  std::int64_t stream;
};

void q_sample_cpu(const QSampleParams& params, std::int64_t begin, std::int64_t end);

}  // namespace fastdiff
