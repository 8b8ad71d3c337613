#pragma once

#include <cstdint>

namespace fastdiff {

// The sum of the squares of x's elements from `begin` to `end`, in the order of memory.
struct SquaresTask {
  const float* x;
  std::int64_t begin, end;
};

double sum_of_squares_cpu(const SquaresTask& task);

}  // namespace fastdiff
