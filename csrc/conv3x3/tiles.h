// An image as tiles of 2x2 pixels.
#pragma once

#include <cstdint>

#include "../common/work.h"
#include "params.h"

namespace fastdiff {

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

}  // namespace fastdiff
