// How work is cut into parts, and the memory in which a thread does its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastdiff {

inline std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

struct Range {
  std::int64_t first, last;
  std::int64_t size() const { return last - first; }
  Range part(std::int64_t i, std::int64_t parts) const {
    return {first + size() * i / parts, first + size() * (i + 1) / parts};
  }
};

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
