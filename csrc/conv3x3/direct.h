// What direct_convolution's 3x3 kernels and their gradients are cut into.
#pragma once

#include <cstdint>

#include "../common/cpu_vector.h"
#include "../common/work.h"
#include "params.h"

namespace fastdiff {

constexpr std::int64_t kBlock = 32;  // channels or positions
constexpr int kTaps = 9;             // pixels of a kernel

inline std::int64_t blocks_of(std::int64_t channels) { return divide_up(channels, kBlock); }

}  // namespace fastdiff
