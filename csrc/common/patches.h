// The 3x3 pixels that a position of a convolution's output sees, side by side, so that the
// convolution is one product of matrices.
#pragma once

#include <cstdint>
#include <cstring>

#include "pixels.h"

namespace fastdiff {

// Of x, every second position both ways.
struct Patches {
  std::int64_t channels = 0;           // 0 where a position sees its own pixel alone
  std::int64_t height = 0, width = 0;  // of x
  std::int64_t before = 0;             // rows and columns of zeros; as many as are needed after x
};

// to [9 * channels]; `image` is a sample of x.
template <class T>
void copy_patch(const Patches& of, const Pixels& x, const T* image, std::int64_t row,
                std::int64_t column, T* to) {
  for (std::int64_t i = 0; i < 9; ++i, to += of.channels) {
    const std::int64_t y_at = 2 * row + i / 3 - of.before, x_at = 2 * column + i % 3 - of.before;
    if (y_at < 0 || y_at >= of.height || x_at < 0 || x_at >= of.width) {
      std::memset(to, 0, of.channels * sizeof(T));
    } else {
      std::memcpy(to, image + y_at * x.row + x_at * x.pixel, of.channels * sizeof(T));
    }
  }
}

}  // namespace fastdiff
