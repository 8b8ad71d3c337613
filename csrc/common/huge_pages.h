// Memory for what the CPU kernels return: in pages of 2 MB where the system has such, and kept for
// the next output when a tensor goes, since a page that is new to the process costs more than what
// a kernel writes there. As much is kept as was once taken; of what is free, 512 MB are the
// process's own, and the system has the rest when it runs short of memory.
#pragma once

#include <cstddef>

namespace fastdiff::huge_pages {

// Null where there is no memory of this kind, or `bytes` are too few to gain by it.
void* take(std::size_t bytes);

void give_back(void* block);

}  // namespace fastdiff::huge_pages
