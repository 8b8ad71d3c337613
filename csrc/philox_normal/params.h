#pragma once

#include "../common/strided.h"

namespace fastdiff {

// Standard normals [N, elements] by sample index and draw.
struct PhiloxNormalParams {
  Strided z;
  Runs runs;
  std::uint64_t seed;
  BySample sample_index, draw;
  std::int64_t stream;
};

void philox_normal_cpu(const PhiloxNormalParams& params, std::int64_t begin, std::int64_t end);

}  // namespace fastdiff
