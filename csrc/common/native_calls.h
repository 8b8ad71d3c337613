// Counts the calls that each native kernel serves, so that tests can tell a kernel from a fallback.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastdiff {

class CallCounter {
 public:
  // `name` is "<op>.<device>" and outlives the counter.
  explicit CallCounter(const char* name);
  void add() { calls_.fetch_add(1, std::memory_order_relaxed); }
  static std::int64_t calls(const char* name);

 private:
  const char* name_;
  CallCounter* next_;
  std::atomic<std::int64_t> calls_{0};
};

}  // namespace fastdiff
