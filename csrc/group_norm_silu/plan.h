// How the CUDA kernels cut a tensor: a function of sizes and device alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../common/device.h"
#include "params.h"

namespace fastdiff {

constexpr int kThreads = 256;
constexpr int kMostPieces = 4;
constexpr int kMostParts = 1024;
// Bytes of a slab in a block: fewer are not worth a block, four blocks of so many fit on an SM, and
// no more than this fit at all.
constexpr std::int64_t kLittle = 4096, kComfortable = 48 * 1024, kMostHeld = 160 * 1024;
constexpr int kFill = 2;                  // blocks an SM, up to which slabs are cut for more blocks
constexpr int kNarrow = 64, kWide = 128;  // bytes of a slab's row

// A slab is some whole groups of a sample: `rows` rows of `across` vectors of `width` elements. It
// is cut by rows into `parts`, a block each; a thread holds `held` vectors of one column.
struct Plan {
  bool covered = true;         // else the reference serves
  bool on_chip = false;        // one launch that reads once; else statistics and output are two
  int width = 1;               // elements of a vector
  std::size_t held_bytes = 0;  // of vectors in a block's shared memory
  int slab = 0;                // channels
  int across = 1, down = 1;    // a block's threads
  std::int64_t rows = 0, rows_of_part = 0;
  int parts = 1;
  int pieces = 1;                         // statistics that a thread keeps apart, by channels
  int columns = 1, columns_of_group = 1;  // of statistics, across a slab
  int groups = 1;                         // of a slab
  int values_of_row = 1;                  // that a group has in a row
  std::int64_t slabs = 1;                 // of a sample

  int threads() const { return (across * down + 31) / 32 * 32; }
  std::int64_t blocks(std::int64_t batch) const { return batch * slabs * parts; }
};

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline int element_size(const GroupNormSiluParams& p) { return p.dtype == DType::float32 ? 4 : 2; }

// Whether packs of `width` elements neither straddle what a thread keeps apart nor lie askew, in
// the tensors of p and in `also`.
inline bool fits(const GroupNormSiluParams& p, int width, const void* also = nullptr) {
  const std::int64_t run = p.channels_last ? p.channels : p.spatial;
  if (p.channels_last &&
      width / std::gcd(p.channels / p.groups, std::int64_t{width}) > kMostPieces) {
    return false;
  }
  const auto addresses =
      reinterpret_cast<std::uintptr_t>(p.x) | reinterpret_cast<std::uintptr_t>(p.y) |
      reinterpret_cast<std::uintptr_t>(p.residual) | reinterpret_cast<std::uintptr_t>(also);
  return run % width == 0 && addresses % (width * element_size(p)) == 0;
}

// Channels of a slab, channels-last: whole groups and whole vectors, and at least `bytes` a row.
inline int slab_channels(const GroupNormSiluParams& p, int width, int bytes) {
  const std::int64_t depth = p.channels / p.groups;
  const std::int64_t least = std::lcm<std::int64_t>(depth, width);
  for (std::int64_t slab = least; slab < p.channels; slab += least) {
    if (p.channels % slab == 0 && slab * element_size(p) >= bytes) return static_cast<int>(slab);
  }
  return static_cast<int>(p.channels);
}

// The slab's width and what follows from it; `bytes` is how wide a row should be.
inline void lay_out(Plan& plan, const GroupNormSiluParams& p, int bytes) {
  const int depth = static_cast<int>(p.channels / p.groups), width = plan.width;
  plan.slab = p.channels_last ? slab_channels(p, width, bytes) : depth;
  plan.slabs = p.channels / plan.slab;
  plan.groups = plan.slab / depth;
  plan.across = p.channels_last ? plan.slab / width : 1;
  plan.rows = p.channels_last ? p.spatial : depth * p.spatial / width;
  plan.pieces = p.channels_last ? width / std::gcd(depth, width) : 1;
  plan.columns = plan.across * plan.pieces;
  plan.columns_of_group = plan.columns / plan.groups;
  plan.values_of_row = p.channels_last ? depth : width;
  plan.covered = plan.across <= kThreads && plan.rows < (std::int64_t{1} << 31);
}

// Threads for the rows that a block has.
inline void fill_block(Plan& plan) {
  plan.rows_of_part = divide_up(plan.rows, plan.parts);
  const std::int64_t most = kThreads / plan.across;
  plan.down = static_cast<int>(std::min(most, plan.rows_of_part));
}

// `held` bytes of an element stay in shared memory, and beside(plan) bytes beside them.
template <class Beside>
bool try_on_chip(Plan& plan, const GroupNormSiluParams& p, const Device& device, int held,
                 const Beside& beside) {
  lay_out(plan, p, kNarrow);
  if (!plan.covered || p.residual != nullptr) return false;
  const int widest = static_cast<int>(device.cluster);
  const auto bytes = [&] {
    return divide_up(plan.rows, plan.parts) * plan.across * plan.width * held;
  };
  const auto spare = [&] { return 2 * plan.blocks(p.batch) <= kFill * device.multiprocessors; };
  while (plan.parts < widest && (bytes() > kComfortable || (spare() && bytes() > kLittle))) {
    plan.parts *= 2;
  }
  fill_block(plan);
  plan.held_bytes = static_cast<std::size_t>(divide_up(plan.rows_of_part, plan.down)) *
                    plan.threads() * plan.width * held;
  plan.on_chip = plan.held_bytes <= kMostHeld && plan.held_bytes + beside(plan) <= device.shared;
  return plan.on_chip;
}

// For slabs that are read twice; a thread takes up to `longest` rows of a part.
inline Plan split_plan(const GroupNormSiluParams& p, const Device& device, int width,
                       std::int64_t longest) {
  Plan plan;
  plan.width = width;
  lay_out(plan, p, kWide);
  const std::int64_t wanted = divide_up(8 * device.multiprocessors, p.batch * plan.slabs);
  const std::int64_t useful = divide_up(plan.rows * plan.across, 8 * kThreads);
  const std::int64_t needed = divide_up(divide_up(plan.rows * plan.across, kThreads), longest);
  plan.parts = static_cast<int>(
      std::clamp<std::int64_t>(std::max(std::min(wanted, useful), needed), 1, kMostParts));
  fill_block(plan);
  return plan;
}

inline Plan plan_for(const GroupNormSiluParams& p, const Device& device) {
  Plan plan;
  const int widest = 16 / element_size(p);
  plan.width = fits(p, widest) ? widest : 1;
  const auto beside = [](const Plan& plan) {  // block.h, Shared
    return static_cast<std::size_t>(plan.down * plan.columns + 2 * plan.groups + plan.slab) * 16;
  };
  if (try_on_chip(plan, p, device, element_size(p), beside)) return plan;
  return split_plan(p, device, plan.width, plan.rows);
}

}  // namespace fastdiff
