#include "native_calls.h"

#include <cstring>

namespace fastdiff {

namespace {

// Counters are static objects that link themselves while the library loads; the list then stands.
CallCounter*& head() {
  static CallCounter* first = nullptr;
  return first;
}

}  // namespace

CallCounter::CallCounter(const char* name) : name_(name), next_(head()) { head() = this; }

std::int64_t CallCounter::calls(const char* name) {
  for (const CallCounter* counter = head(); counter != nullptr; counter = counter->next_) {
    if (std::strcmp(counter->name_, name) == 0) return counter->calls_.load();
  }
  return 0;
}

}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) std::int64_t fastdiff_native_calls(
    const char* kernel) {
  return fastdiff::CallCounter::calls(kernel);
}
