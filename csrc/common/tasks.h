// How the product of many rows by panels of output channels is shared out among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "panels.h"

namespace fastdiff {

// A task is one of `blocks` of the rows by one of `groups` of the panels.
struct Tasks {
  Range rows, panels;
  std::int64_t blocks, groups = 1;

  // Of at most `most` rows; few of them share out panels, so that each weight is read once.
  Tasks(std::int64_t row_count, std::int64_t most, std::int64_t out_channels, std::int64_t threads)
      : rows{0, row_count},
        panels{0, divide_up(out_channels, kPanel)},
        blocks(divide_up(row_count, most)) {
    constexpr std::int64_t kLeast = 8;  // rows worth a block
    if (blocks >= threads) {
      blocks = divide_up(blocks, threads) * threads;
    } else {
      groups = std::min(panels.size(), threads / blocks);
      blocks = std::max(blocks, std::min(threads / groups, row_count / kLeast));
    }
  }
  std::int64_t count() const { return blocks * groups; }
  Range rows_of(std::int64_t task) const { return rows.part(task / groups, blocks); }
  Range panels_of(std::int64_t task) const { return panels.part(task % groups, groups); }
};

// f(rows, panels, space) of every task, on all threads. Each begins with a share of its own, the
// same at every call, whose rows are in its cache; done with that it takes from the others': not
// all cores are equally fast, nor this program's alone.
template <class F>
void in_parallel(const Tasks& tasks, const F& f) {
  const Range all{0, tasks.count()};
  const std::int64_t threads = std::min<std::int64_t>(all.size(), torch::stable::get_num_threads());
  std::vector<std::atomic<std::int64_t>> taken(threads);  // of each share
  torch::stable::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t) {
    static thread_local Workspace space;
    for (std::int64_t i = 0; i < threads; ++i) {
      const std::int64_t owner = (begin + i) % threads;
      const Range share = all.part(owner, threads);
      for (std::int64_t task; (task = share.first + taken[owner]++) < share.last;) {
        f(tasks.rows_of(task), tasks.panels_of(task), space);
      }
    }
  });
}

}  // namespace fastdiff
