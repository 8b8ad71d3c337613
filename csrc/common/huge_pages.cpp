#include "huge_pages.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

namespace fastdiff::huge_pages {
namespace {

constexpr std::size_t kPage = std::size_t{1} << 21, kLine = 64;
constexpr std::size_t kLeastBlock = std::size_t{1} << 16;
constexpr std::size_t kLeastRegion = 16 * kPage;
constexpr std::size_t kMostKept = 256 * kPage;  // beyond, the system may have what is free

std::size_t rounded_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

using Ranges = std::map<char*, std::size_t>;  // sizes by place

// Blocks side by side in regions that the system gave; the lowest free place is taken first.
class Memory {
  Ranges regions_, free_, taken_;
  std::size_t bytes_free_ = 0, bytes_taken_ = 0, most_taken_ = 0;

  // Null where the system has none.
  char* new_region(std::size_t size) {
    const std::size_t room = size + kPage;
    void* mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* const begin = static_cast<char*>(mapped);
    const std::size_t before = -reinterpret_cast<std::uintptr_t>(begin) % kPage;
    char* const region = begin + before;
    if (before > 0) munmap(begin, before);
    munmap(region + size, kPage - before);
    madvise(region, size, MADV_HUGEPAGE);
    regions_.emplace(region, size);
    return region;
  }

  Ranges::iterator add_free(char* place, std::size_t size) {
    bytes_free_ += size;
    const auto after = free_.lower_bound(place);
    const auto added = free_.emplace_hint(after, place, size);
    const auto joins = [this](Ranges::iterator a, Ranges::iterator b) {
      return a->first + a->second == b->first && regions_.find(b->first) == regions_.end();
    };
    if (after != free_.end() && joins(added, after)) {
      added->second += after->second;
      free_.erase(after);
    }
    if (added == free_.begin()) return added;
    const auto before = std::prev(added);
    if (!joins(before, added)) return added;
    before->second += added->second;
    free_.erase(added);
    return before;
  }

 public:
  std::mutex mutex;

  void* take(std::size_t size) {
    auto found = std::find_if(free_.begin(), free_.end(),
                              [size](const auto& range) { return range.second >= size; });
    if (found == free_.end()) {
      const std::size_t region_size = rounded_up(std::max(size, kLeastRegion), kPage);
      char* region = new_region(region_size);
      if (region == nullptr) return nullptr;
      found = add_free(region, region_size);
    }
    const auto [place, room] = *found;
    free_.erase(found);
    bytes_free_ -= room;
    if (room > size) add_free(place + size, room - size);
    taken_.emplace(place, size);
    bytes_taken_ += size;
    most_taken_ = std::max(most_taken_, bytes_taken_);
    return place;
  }

  void give_back(char* block) {
    const auto found = taken_.find(block);
    const auto range = add_free(found->first, found->second);
    bytes_taken_ -= found->second;
    taken_.erase(found);
    const auto region = regions_.find(range->first);
    const bool whole = region != regions_.end() && region->second == range->second;
    if (!whole || bytes_free_ <= kMostKept) return;
    // A run's next step takes as much as its last, and some room more, scattered as it lies.
    const bool needed = bytes_free_ + bytes_taken_ <= most_taken_ + kMostKept;
    if (needed && madvise(region->first, region->second, MADV_FREE) == 0) return;
    munmap(region->first, region->second);
    bytes_free_ -= range->second;
    regions_.erase(region);
    free_.erase(range);
  }
};

// Never destroyed: tensors may outlive every static object.
Memory& memory() {
  static Memory& only = []() -> Memory& {
    // A child process gets no lock that a thread of its parent holds.
    pthread_atfork([] { memory().mutex.lock(); }, [] { memory().mutex.unlock(); },
                   [] { memory().mutex.unlock(); });
    return *new Memory;
  }();
  return only;
}

}  // namespace

void* take(std::size_t bytes) {
  if (bytes < kLeastBlock) return nullptr;
  const std::lock_guard lock(memory().mutex);
  return memory().take(rounded_up(bytes, kLine));
}

void give_back(void* block) {
  const std::lock_guard lock(memory().mutex);
  memory().give_back(static_cast<char*>(block));
}

}  // namespace fastdiff::huge_pages

#else

namespace fastdiff::huge_pages {

void* take(std::size_t) { return nullptr; }

void give_back(void*) {}

}  // namespace fastdiff::huge_pages
#endif
