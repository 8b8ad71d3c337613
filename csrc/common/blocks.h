// How the gradient of a matrix of weights is shared out among threads: by blocks, each of which
// sums over everything, so that the bits do not depend on the threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "work.h"

namespace fastdiff {

// A side of the matrix, in units of which a block has at most `most`.
struct Side {
  std::int64_t units, most;
};

// f(rows, columns, space) of every block, in units, on all threads.
template <class F>
void by_blocks(const Side& rows, const Side& columns, const F& f) {
  const std::int64_t threads = torch::stable::get_num_threads();
  std::int64_t down = divide_up(divide_up(rows.units, rows.most), threads) * threads;
  down = std::min(down, rows.units);
  std::int64_t across = std::max(divide_up(columns.units, columns.most), divide_up(threads, down));
  across = std::min(across, columns.units);
  torch::stable::parallel_for(0, down * across, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace space;
    for (std::int64_t i = begin; i < end; ++i) {
      f(Range{0, rows.units}.part(i / across, down),
        Range{0, columns.units}.part(i % across, across), space);
    }
  });
}

}  // namespace fastdiff
