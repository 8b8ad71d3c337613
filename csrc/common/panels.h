// How a product of many rows by panels of output channels is cut.
#pragma once

#include <algorithm>

#include "work.h"

namespace fastdiff {

constexpr std::int64_t kPanel = 32;   // output channels that lie side by side in packed weights
constexpr std::int64_t kChunk = 128;  // input channels whose products are summed up at a time

inline std::int64_t chunks(std::int64_t channels) { return divide_up(channels, kChunk); }

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

}  // namespace fastdiff
