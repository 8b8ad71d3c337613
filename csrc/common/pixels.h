#pragma once

#include <cstdint>

namespace fastdiff {

// Where a channels-last image's samples, rows and pixels begin, in elements.
struct Pixels {
  const void* data = nullptr;
  std::int64_t sample = 0, row = 0, pixel = 0;
};

}  // namespace fastdiff
