// Fibres, their meetings, and the order in which they run.
#include "machine.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda_on_cpu.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace on_cpu {

Gpu gpu;
Thread* current = nullptr;

namespace {

constexpr std::size_t kStack = 64 * 1024;

struct Fibre : Thread {
  ucontext_t context;
  void* place[5];
  bool fresh = true;
};

struct Machine {
  std::deque<Fibre> fibres;
  std::vector<Block> blocks;  // of the running cluster
  Meeting cluster;
  std::deque<Fibre*> ready;
  Fibre host;
  std::size_t ended = 0, running = 0;
  std::uint16_t launch = 0;
  bool failed = false;
  char complaint[512] = "";
  void (*thread)(const void*) = nullptr;
  const void* argument = nullptr;
} machine;

// ---- fibres ----

[[noreturn]] __attribute__((noinline)) void jump(void** place) { __builtin_longjmp(place, 1); }

// swapcontext alone would do, but asks the kernel for the signal mask each time.
__attribute__((noinline)) void switch_to(Fibre& from, Fibre& next) {
  if (&next == &machine.host) {
    current = nullptr;
  } else {
    current = &next;
    threadIdx.x = next.index;
    blockIdx.x = next.block->index;
  }
  if (__builtin_setjmp(from.place) != 0) return;
  if (!next.fresh) jump(next.place);
  next.fresh = false;
  setcontext(&next.context);
}

void describe_waiting(char* to, std::size_t size) {
  std::size_t at = std::snprintf(to, size, "%zu threads have ended", machine.ended);
  std::vector<const char*> told;
  for (std::size_t i = 0; i < machine.running; ++i) {
    const char* const what = machine.fibres[i].waits_for;
    if (what == nullptr || std::count(told.begin(), told.end(), what) > 0 || at >= size) continue;
    told.push_back(what);
    const auto same = [&](const Fibre& f) { return f.waits_for == what; };
    const auto count =
        std::count_if(machine.fibres.begin(), machine.fibres.begin() + machine.running, same);
    at += std::snprintf(to + at, size - at, ", %td wait for %s", count, what);
  }
}

// Leaves the running thread for the next that can run.
void yield() {
  Fibre& self = *static_cast<Fibre*>(current);
  if (machine.ready.empty()) {
    if (machine.ended < machine.running) {
      char waiting[256];
      describe_waiting(waiting, sizeof(waiting));
      complain(nullptr, "deadlock: %s", waiting);
    }
    switch_to(self, machine.host);
    return;
  }
  Fibre& next = *machine.ready.front();
  machine.ready.pop_front();
  switch_to(self, next);
}

void live() {
  for (;;) {
    machine.thread(machine.argument);
    check_rewrites(current->rewrites);
    current->waits_for = nullptr;
    ++machine.ended;
    yield();
  }
}

void make_fibre(Fibre& fibre) {
  if (fibre.stack == nullptr) {
    void* const stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    fibre.stack = static_cast<unsigned char*>(stack);
    fibre.stack_end = fibre.stack + kStack;
  }
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack;
  fibre.context.uc_stack.ss_size = kStack;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, live, 0);
}

// ---- meetings ----

enum class Orders { nothing, warp, block, cluster };

void meet(Meeting& meeting, const char* what, Orders orders) {
  check_rewrites(current->rewrites);
  current->waits_for = what;
  meeting.there.push_back(current);
  if (meeting.there.size() < meeting.size) {
    yield();
    return;
  }
  for (Thread* const thread : meeting.there) {
    if (thread->waits_for != what) {
      complain(nullptr, "diverges: it meets others at %s, but thread %u at %s", what, thread->index,
               thread->waits_for);
    }
    thread->waits_for = nullptr;
    thread->now.warp += orders == Orders::warp;
    thread->now.block += orders == Orders::block;
    thread->now.cluster += orders == Orders::cluster;
    if (thread != current) machine.ready.push_back(static_cast<Fibre*>(thread));
  }
  meeting.there.clear();
}

// ---- clusters ----

void lay_out_block(Block& block, unsigned index, const Layout& layout, unsigned char* shared) {
  block.index = index;
  std::memset(shared, 0xff, layout.shared);  // NaN in every type
  block.shared = region(shared, layout.shared, false);
  block.meeting = {layout.threads, {}};
  block.warps.clear();
  for (unsigned first = 0; first < layout.threads; first += kLanes) {
    block.warps.emplace_back().meeting.size = std::min(kLanes, layout.threads - first);
  }
}

// From a block's shared memory to the next one's.
std::size_t apart(const Layout& layout) { return layout.shared / 128 * 128 + 256; }

void place_thread(Fibre& fibre, Block& block, unsigned index) {
  fibre.block = &block;
  fibre.warp = &block.warps[index / kLanes];
  fibre.index = index;
  fibre.gathered = 0;
  fibre.waits_for = nullptr;
  fibre.rewrites.clear();
  fibre.copies.clear();
  fibre.groups.clear();
  fibre.grouped = 0;
  fibre.now = {block.index * static_cast<unsigned>(block.meeting.size) + index + 1, machine.launch,
               0, 0, 1};
  if (fibre.fresh) make_fibre(fibre);
  machine.ready.push_back(&fibre);
}

void run_cluster(const Layout& layout, unsigned first_block, unsigned char* shared) {
  machine.ready.clear();
  machine.ended = 0;
  machine.cluster = {machine.running, {}};
  for (unsigned rank = 0; rank < layout.cluster; ++rank) {
    Block& block = machine.blocks[rank];
    lay_out_block(block, first_block + rank, layout, shared + rank * apart(layout));
    for (unsigned i = 0; i < layout.threads; ++i) {
      place_thread(machine.fibres[rank * layout.threads + i], block, i);
    }
  }
  Fibre& first = *machine.ready.front();
  machine.ready.pop_front();
  machine.host.fresh = false;
  switch_to(machine.host, first);
}

}  // namespace

bool run(const Layout& layout, void (*thread)(const void*), const void* argument) {
  machine.thread = thread;
  machine.argument = argument;
  machine.failed = false;
  ++machine.launch;
  machine.running = layout.threads * layout.cluster;
  machine.blocks.resize(layout.cluster);
  if (machine.fibres.size() < machine.running) machine.fibres.resize(machine.running);
  blockDim = dim3(layout.threads);
  gridDim = dim3(layout.blocks);
  team = {layout.threads, layout.threads * layout.cluster};
  const std::unique_ptr<void, void (*)(void*)> shared(
      std::aligned_alloc(128, layout.cluster * apart(layout)), std::free);
  for (unsigned block = 0; block < layout.blocks && !machine.failed; block += layout.cluster) {
    run_cluster(layout, block, static_cast<unsigned char*>(shared.get()));
  }
  if (machine.failed) {  // they stand in the midst of the kernel
    for (Fibre& fibre : machine.fibres) fibre.fresh = true;
  }
  return !machine.failed;
}

const char* complaint() { return machine.complaint; }

void complain(const void* code, const char* format, ...) {
  char what[384], where[64] = "";
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  Dl_info library;
  if (code != nullptr && dladdr(code, &library) != 0) {
    const auto offset = static_cast<const char*>(code) - static_cast<char*>(library.dli_fbase);
    std::snprintf(where, sizeof(where), " at code +0x%tx", offset - 1);
  }
  if (current == nullptr) {
    std::fprintf(stderr, "the host's code %s%s\n", what, where);
    std::abort();
  }
  std::snprintf(machine.complaint, sizeof(machine.complaint), "thread %u of block %u %s%s",
                current->index, current->block->index, what, where);
  machine.failed = true;
  switch_to(*static_cast<Fibre*>(current), machine.host);
  std::abort();
}

Block& block_of_cluster(unsigned rank) {
  if (rank >= machine.blocks.size()) complain(nullptr, "asks for block %u of its cluster", rank);
  return machine.blocks[rank];
}

unsigned rank_in_cluster() { return static_cast<unsigned>(current->block - machine.blocks.data()); }

void meet_warp() { meet(current->warp->meeting, "__syncwarp", Orders::warp); }
void meet_block() { meet(current->block->meeting, "__syncthreads", Orders::block); }
void meet_cluster() { meet(machine.cluster, "the cluster's barrier", Orders::cluster); }

const unsigned char (*gather(const char* operation, const void* value, std::size_t size))[64] {
  auto* const all = current->warp->given[++current->gathered % 2];
  std::memcpy(all[current->lane()], value, size);
  meet(current->warp->meeting, operation, Orders::nothing);
  return all;
}

}  // namespace on_cpu
