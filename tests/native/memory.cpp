// The rules of memory.h, and the functions by which instrumented code reports to them: those of
// ThreadSanitizer and UndefinedBehaviorSanitizer, whose own libraries know no fibres.
#include "memory.h"

#include <cstring>

#include "machine.h"

// Where this library begins and ends, by the linker.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;

namespace on_cpu {

Team team;

namespace {

std::vector<Region> known;

bool between(const void* p, const void* first, const void* end) { return p >= first && p < end; }

Region* region_of(const void* p, std::size_t size) {
  if (current->block->shared.holds(p, size)) return &current->block->shared;
  for (Region& r : known) {
    if (r.holds(p, size)) return &r;
  }
  return nullptr;
}

unsigned place(const Clock& clock) { return (clock.thread - 1) % team.threads_of_block; }

bool of_own_warp(const Clock& other) {
  const unsigned a = other.thread - 1, b = current->now.thread - 1;
  return a / team.threads_of_block == b / team.threads_of_block &&
         place(other) / kLanes == place(current->now) / kLanes;
}

// Whether what was done at `earlier` is done, and seen, for the thread that runs.
bool before(const Clock& earlier) {
  const Clock& now = current->now;
  if (earlier.thread == 0 || earlier.thread == now.thread || earlier.launch != now.launch) {
    return true;
  }
  const unsigned a = earlier.thread - 1, b = now.thread - 1;
  if (a / team.threads_of_cluster != b / team.threads_of_cluster) return false;
  if (earlier.cluster < now.cluster) return true;
  if (a / team.threads_of_block != b / team.threads_of_block) return false;
  if (earlier.block < now.block) return true;
  return of_own_warp(earlier) && earlier.warp < now.warp;
}

void read(Cell& cell, const Clock& as, const void* code) {
  if (cell.in_flight) complain(code, "reads what a copy is still bringing");
  if (cell.write.thread == 0) complain(code, "reads what was never written");
  if (!before(cell.write)) {
    complain(code, "races: reads what thread %u wrote, no barrier between", place(cell.write));
  }
  Clock& first = cell.reads[0];
  (before(first) ? first : cell.reads[1]) = as;
}

void write(Cell& cell, const unsigned char* at, const void* code) {
  if (!before(cell.write) && of_own_warp(cell.write)) {
    const auto* const word = reinterpret_cast<const std::uint16_t*>(at);
    current->rewrites.push_back({word, *word, code});
  } else if (!before(cell.write)) {
    complain(code, "races: writes what thread %u wrote, no barrier between", place(cell.write));
  }
  for (const Clock& by : cell.reads) {
    if (!before(by)) {
      complain(code, "races: writes what thread %u read, no barrier between", place(by));
    }
  }
  cell.write = current->now;
  cell.in_flight = false;
}

template <class Visit>
void each_cell(Region& r, const void* p, std::size_t size, const Visit& visit) {
  const std::size_t from = static_cast<const unsigned char*>(p) - r.first;
  for (std::size_t i = from / 2; i < (from + size + 1) / 2; ++i) visit(r.cells[i], r.first + 2 * i);
}

void read(Region& r, const void* from, std::size_t size, const Clock& as, const void* code) {
  each_cell(r, from, size, [&](Cell& cell, auto) { read(cell, as, code); });
}

void read(const void* from, std::size_t size, const Clock& as, const void* code) {
  Region* const r = region_of(from, size);
  if (r == nullptr) complain(code, "reads %zu bytes out of bounds", size);
  read(*r, from, size, as, code);
}

bool of_own_stack(const void* p) { return between(p, current->stack, current->stack_end); }

}  // namespace

Region region(void* first, std::size_t bytes, bool written) {
  Cell cell;
  cell.write.thread = written;  // in launch 0, before all others
  return {static_cast<unsigned char*>(first), bytes, std::vector<Cell>((bytes + 1) / 2, cell)};
}

void know_memory(void* first, std::size_t bytes, bool written) {
  known.push_back(region(first, bytes, written));
}

void forget_memory() { known.clear(); }

void check_read(Region& r, const void* from, std::size_t size, const void* code) {
  read(r, from, size, current->now, code);
}

void check_read(const void* from, std::size_t size, const void* code) {
  if (current == nullptr || of_own_stack(from) || between(from, &__ehdr_start, &_end)) return;
  read(from, size, current->now, code);
}

void check_read_of_warp(const void* from, std::size_t size, const void* code) {
  Clock past = current->now;
  --past.warp;
  read(from, size, past, code);
}

void check_write(void* to, std::size_t size, const void* code) {
  if (current == nullptr || of_own_stack(to)) return;
  Region* const r = region_of(to, size);
  if (r == nullptr) complain(code, "writes %zu bytes out of bounds", size);
  each_cell(*r, to, size, [&](Cell& cell, const auto* at) { write(cell, at, code); });
}

void check_rewrites(std::vector<Rewrite>& rewrites) {
  for (const Rewrite& rewrite : rewrites) {
    // A GPU has one NaN; on the CPU its bits depend on the operands' order.
    const bool nan = (*rewrite.at & rewrite.was & 0x7fc0) == 0x7fc0;
    if (*rewrite.at != rewrite.was && !nan) {
      complain(rewrite.code, "races: writes another value where its warp wrote");
    }
  }
  rewrites.clear();
}

void check_copy(void* to, std::size_t size, const void* code) {
  check_write(to, size, code);
  each_cell(current->block->shared, to, size, [](Cell& cell, auto) { cell.in_flight = true; });
}

}  // namespace on_cpu

extern "C" {

#define ACCESS(size)                                          \
  void __tsan_read##size(const void* p) {                     \
    on_cpu::check_read(p, size, __builtin_return_address(0)); \
  }                                                           \
  void __tsan_write##size(void* p) { on_cpu::check_write(p, size, __builtin_return_address(0)); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(const void* p, std::size_t size) {
  on_cpu::check_read(p, size, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t size) {
  on_cpu::check_write(p, size, __builtin_return_address(0));
}
void __tsan_init() {}

#define UNDEFINED(name, text) \
  void __ubsan_handle_##name##_abort() { on_cpu::complain(__builtin_return_address(0), text); }
UNDEFINED(type_mismatch_v1, "uses a misaligned or null address")
UNDEFINED(pointer_overflow, "overflows a pointer")
UNDEFINED(out_of_bounds, "indexes out of an array's bounds")
UNDEFINED(add_overflow, "overflows an addition")
UNDEFINED(sub_overflow, "overflows a subtraction")
UNDEFINED(mul_overflow, "overflows a product")
UNDEFINED(negate_overflow, "overflows a negation")
UNDEFINED(divrem_overflow, "divides by zero")
UNDEFINED(shift_out_of_bounds, "shifts by more than there is")
UNDEFINED(load_invalid_value, "reads a bool or an enum that is none")
UNDEFINED(float_cast_overflow, "casts a float that does not fit")
UNDEFINED(nonnull_arg, "gives a null where none may be")
#undef UNDEFINED

void __ubsan_handle_builtin_unreachable() {
  on_cpu::complain(__builtin_return_address(0), "comes to where no code is");
}
void __ubsan_handle_missing_return() {
  on_cpu::complain(__builtin_return_address(0), "ends a function without its value");
}
}
