// What a kernel's threads may do to memory. Each access is reported by code that the compiler puts
// before it, and held against who wrote and read the same bytes, and which barriers came between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace on_cpu {

// When a thread did something, counted in the barriers it had passed; thread 0 is nobody.
struct Clock {
  std::uint32_t thread = 0;
  std::uint16_t launch = 0, cluster = 0, block = 0, warp = 0;
};

// Of the running launch, so that a thread's number tells its warp, block and cluster.
struct Team {
  unsigned threads_of_block = 1, threads_of_cluster = 1;
};
extern Team team;

// Two bytes' last write and reads. Of two readers at least one is not the next writer.
struct Cell {
  Clock write, reads[2];
  bool in_flight = false;  // an asynchronous copy is still bringing them
};

struct Region {
  unsigned char* first = nullptr;
  std::size_t bytes = 0;
  std::vector<Cell> cells;

  bool holds(const void* p, std::size_t size) const {
    const auto* const at = static_cast<const unsigned char*>(p);
    return at >= first && at + size <= first + bytes;
  }
};

// A region whose bytes are `written` already, or not yet to be read.
Region region(void* first, std::size_t bytes, bool written);

// Memory of the device, until the next call of forget_memory.
void know_memory(void* first, std::size_t bytes, bool written);
void forget_memory();

void check_read(const void* from, std::size_t size, const void* code);
// By an instruction of the whole warp, which is over for all lanes or for none.
void check_read_of_warp(const void* from, std::size_t size, const void* code);
void check_write(void* to, std::size_t size, const void* code);

// Another block's shared memory.
void check_read(Region& region, const void* from, std::size_t size, const void* code);

// What the running thread wrote over other lanes' writes must be what they wrote.
struct Rewrite {
  const std::uint16_t* at;
  std::uint16_t was;
  const void* code;
};
void check_rewrites(std::vector<Rewrite>& rewrites);

// The asynchronous copy to these bytes begins; check_write ends it.
void check_copy(void* to, std::size_t size, const void* code);

}  // namespace on_cpu
