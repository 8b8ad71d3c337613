// Torch's current stream, found while running: a library that was linked beside a torch without
// CUDA names none that holds it, and would see a null in its place.
#include "cuda_stream.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace fastdiff {
namespace {

using CurrentStream = AOTITorchError(std::int32_t device, void** stream);

CurrentStream* find_current_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch_cuda == nullptr) return nullptr;
  return reinterpret_cast<CurrentStream*>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
}

CurrentStream* current_stream() {
  static CurrentStream* const found = find_current_stream();
  return found;
}

}  // namespace

void* current_cuda_stream(int device) {
  STD_TORCH_CHECK(current_stream() != nullptr,
                  "fastdiff: this torch does not tell its CUDA stream; install torch 2.11 or newer "
                  "with CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(current_stream()(device, &stream));
  return stream;
}

}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) bool fastdiff_finds_cuda_streams() {
  return fastdiff::current_stream() != nullptr;
}
