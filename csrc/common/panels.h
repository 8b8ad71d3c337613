// How the products of many rows by weights are laid out.
#pragma once

#include "work.h"

namespace fastdiff {

constexpr std::int64_t kPanel = 32;   // output channels that lie side by side in packed weights
constexpr std::int64_t kChunk = 128;  // input channels whose products are summed up at a time

inline std::int64_t chunks(std::int64_t channels) { return divide_up(channels, kChunk); }

}  // namespace fastdiff
