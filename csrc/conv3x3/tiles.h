// An image as tiles of 2x2 pixels, and the memory in which threads work on them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "params.h"

namespace fastdiff {

inline std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

struct Range {
  std::int64_t first, last;
  std::int64_t size() const { return last - first; }
  Range part(std::int64_t i, std::int64_t parts) const {
    return {first + size() * i / parts, first + size() * (i + 1) / parts};
  }
};

// Of its upper left pixel.
struct TilePlace {
  std::int64_t sample, y, x;
};

template <class Params>
std::int64_t tile_rows(const Params& p) {
  return divide_up(p.height, 2);
}

template <class Params>
std::int64_t tile_columns(const Params& p) {
  return divide_up(p.width, 2);
}

template <class Params>
Range all_tiles(const Params& p) {
  return {0, p.batch * tile_rows(p) * tile_columns(p)};
}

template <class Params>
TilePlace tile_place(const Params& p, std::int64_t tile) {
  const std::int64_t columns = tile_columns(p), row = tile / columns;
  return {row / tile_rows(p), row % tile_rows(p) * 2, tile % columns * 2};
}

// A thread's memory between calls.
class Workspace {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  std::int64_t size_ = 0;

 public:
  float* at_least(std::int64_t floats) {
    if (floats > size_) {
      constexpr std::size_t kAlignment = 64;
      const std::size_t bytes = (floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
      data_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_.get();
  }
};

}  // namespace fastdiff
