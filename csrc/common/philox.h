// Standard normals to the bit of fastdiff/ops/philox_normal/NOTES.md, on the CPU.
#pragma once

#include <cstdint>

namespace fastdiff {

// Which normals: those of one sample in one draw.
struct NoiseSource {
  std::uint64_t seed;
  std::int64_t sample, draw, stream;
};

// Writes elements first to first + count - 1, counted in logical order within the sample.
void normals(const NoiseSource& source, std::int64_t first, std::int64_t count, float* to);

}  // namespace fastdiff
