// A GPU's threads on one thread of the CPU: fibres that meet at barriers, a cluster at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "memory.h"

namespace on_cpu {

// What the CUDA runtime tells of the GPU.
struct Gpu {
  int multiprocessors = 132, shared = 227 * 1024, clusters = 1;
};
extern Gpu gpu;

struct Layout {
  unsigned blocks, threads, cluster;
  std::size_t shared;
};

// Runs thread(argument) for every thread. False where one did wrong: complaint() tells what.
bool run(const Layout& layout, void (*thread)(const void*), const void* argument);

const char* complaint();

// Ends the launch; `code` is the address that did it.
[[noreturn]] void complain(const void* code, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// ---- the thread that runs ----

struct Thread;

// Threads that wait until `size` of them are there.
struct Meeting {
  std::size_t size = 0;
  std::vector<Thread*> there;
};

constexpr unsigned kLanes = 32;

struct Warp {
  Meeting meeting;
  // What the lanes give each other: two sets, since a lane may give anew before others have read.
  alignas(16) unsigned char given[2][kLanes][64];
};

struct Block {
  unsigned index = 0;
  Region shared;
  Meeting meeting;
  std::deque<Warp> warps;
};

struct Copy {
  void* to;
  const void* from;  // null for zeros
};

struct Thread {
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned index = 0, gathered = 0;
  Clock now;
  const char* waits_for = nullptr;  // null while it runs
  std::vector<Rewrite> rewrites;
  std::vector<Copy> copies;
  std::deque<std::size_t> groups;  // of copies: how many each has
  std::size_t grouped = 0;
  unsigned char *stack = nullptr, *stack_end = nullptr;

  unsigned lane() const { return index % kLanes; }
};

extern Thread* current;  // null while the host's own code runs

// The running cluster's block `rank`.
Block& block_of_cluster(unsigned rank);
unsigned rank_in_cluster();

void meet_warp();
void meet_block();
void meet_cluster();

// Each lane gives `size` bytes of `value` and sees those of all, 64 bytes apart. No memory barrier.
const unsigned char (*gather(const char* operation, const void* value, std::size_t size))[64];

}  // namespace on_cpu
