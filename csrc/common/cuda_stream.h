#pragma once

namespace fastdiff {

// The cudaStream_t that torch's own work on this device goes to now.
void* current_cuda_stream(int device);

}  // namespace fastdiff
