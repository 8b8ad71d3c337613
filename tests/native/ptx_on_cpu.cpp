// What a warp, a block and a cluster do together, and copies in the background.
#include "ptx_on_cpu.h"

#include <algorithm>
#include <cstring>

#include "cuda_on_cpu.h"
#include "machine.h"

#define CODE __builtin_return_address(0)

namespace on_cpu {
namespace {

template <class T>
T given(const unsigned char (&slot)[64]) {
  T value;
  std::memcpy(&value, slot, sizeof(T));
  return value;
}

struct Row {
  std::uint16_t at[8];
};

std::size_t offset_in_shared(const void* p, std::size_t size, const void* code) {
  const Region& shared = current->block->shared;
  if (!shared.holds(p, size)) complain(code, "takes other memory for its block's shared memory");
  const std::size_t offset = static_cast<const unsigned char*>(p) - shared.first;
  if (offset % size != 0) complain(code, "uses a misaligned address of shared memory");
  return offset;
}

// Done as late as the machine may: whoever did not wait finds poison.
void bring(const Copy& copy, const void* code) {
  check_write(copy.to, 16, code);
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

const void* in_block(const void* shared, std::size_t size, unsigned rank, const void* code) {
  const std::size_t offset = offset_in_shared(shared, size, code);
  Region& theirs = block_of_cluster(rank).shared;
  check_read(theirs, theirs.first + offset, size, code);
  return theirs.first + offset;
}

}  // namespace

void wait_copies(std::size_t pending) {
  Thread& self = *current;
  std::size_t done = 0;
  for (; self.groups.size() > pending; self.groups.pop_front()) done += self.groups.front();
  const auto end = self.copies.begin() + done;
  std::for_each(self.copies.begin(), end, [](const Copy& copy) { bring(copy, CODE); });
  self.copies.erase(self.copies.begin(), end);
}

// Row r of a lies in lanes r % 8 * 4 to r % 8 * 4 + 3, column c of b in lanes 4 c to 4 c + 3; four
// lanes hold two steps of k each, and then two of the next eight.
void multiply_add(float (&sums)[4], const Operands& own) {
  const auto* const all = gather("mma", &own, sizeof(own));
  const unsigned row = current->lane() / 4, column = current->lane() % 4 * 2;
  for (int quarter = 0; quarter < 4; ++quarter) {
    const auto a = given<Operands>(all[row * 4 + quarter]);
    for (int e = 0; e < 2; ++e) {
      const auto b = given<Operands>(all[(column + e) * 4 + quarter]);
      for (int k = 0; k < 4; ++k) {
        sums[e] += a.a[k / 2 * 2][k % 2] * b.b[k / 2][k % 2];
        sums[2 + e] += a.a[k / 2 * 2 + 1][k % 2] * b.b[k / 2][k % 2];
      }
    }
  }
}

}  // namespace on_cpu

void __syncthreads() { on_cpu::meet_block(); }
void __syncwarp() { on_cpu::meet_warp(); }

float __shfl_sync(unsigned mask, float value, unsigned from) {
  if (mask != 0xffffffffu) on_cpu::complain(CODE, "shuffles a part of its warp");
  const auto* const all = on_cpu::gather("a shuffle", &value, sizeof(value));
  return on_cpu::given<float>(all[from % on_cpu::kLanes]);
}

float __shfl_xor_sync(unsigned mask, float value, unsigned other) {
  return __shfl_sync(mask, value, on_cpu::current->lane() ^ other);
}

namespace fastdiff {

using on_cpu::current;

unsigned char* dynamic_shared() { return current->block->shared.first; }

void copy_async(void* to_shared, const void* from, bool valid) {
  on_cpu::offset_in_shared(to_shared, 16, CODE);
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    on_cpu::complain(CODE, "copies from a misaligned address");
  }
  if (valid) on_cpu::check_read(from, 16, CODE);
  on_cpu::check_copy(to_shared, 16, CODE);
  std::memset(to_shared, 0xff, 16);
  current->copies.push_back({to_shared, valid ? from : nullptr});
  ++current->grouped;
}

void commit_copies() {
  current->groups.push_back(current->grouped);
  current->grouped = 0;
}

template <bool transposed>
void load_matrices(std::uint32_t (&to)[4], const void* shared_row) {
  on_cpu::offset_in_shared(shared_row, 16, CODE);
  on_cpu::check_read_of_warp(shared_row, 16, CODE);
  const auto* const all =
      on_cpu::gather(transposed ? "ldmatrix.trans" : "ldmatrix", shared_row, 16);
  const unsigned major = current->lane() / 4, minor = current->lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    std::uint32_t pair[2];
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned row = transposed ? minor + e : major, column = transposed ? major : minor + e;
      pair[e] = on_cpu::given<on_cpu::Row>(all[8 * i + row]).at[column];
    }
    to[i] = pair[0] | pair[1] << 16;
  }
}
template void load_matrices<false>(std::uint32_t (&)[4], const void*);
template void load_matrices<true>(std::uint32_t (&)[4], const void*);

unsigned cluster_rank() { return on_cpu::rank_in_cluster(); }
void cluster_barrier() { on_cpu::meet_cluster(); }

float read_of_cluster(const float* shared, unsigned rank) {
  float value;
  std::memcpy(&value, on_cpu::in_block(shared, sizeof(value), rank, CODE), sizeof(value));
  return value;
}

void read_of_cluster(std::uint32_t (&to)[4], const void* shared, unsigned rank) {
  std::memcpy(to, on_cpu::in_block(shared, sizeof(to), rank, CODE), sizeof(to));
}

}  // namespace fastdiff
