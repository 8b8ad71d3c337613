// The weights of a block's products, as one stream of slices from global to shared memory.
#pragma once

#include "tiles.h"

namespace fastdiff::attention {

// Slices are kDepth deep in k and as wide as the product; `slots` of them are held or under way.
// A slice is a panel [columns][kDepth], where the weight's rows are the product's columns, or
// [kDepth][columns], where they run along k; either is copied by the same threads to the same
// places, but for the swizzle.
// Plan says which matrices come, in order: each [columns][depth], or [depth][columns] `along_k`.
template <class T, class Plan, int width, int slots>
class WeightStream {
 public:
  static constexpr int kSlice = width * kDepth;
  static constexpr int kCopies = kSlice / 8 / kThreads;  // a thread and slice

  __device__ WeightStream(const Plan& plan, T* shared) : plan_(plan), shared_(shared) {
    open();
    for (int slot = 0; slot < slots; ++slot) {
      request(slot);
      advance();
    }
  }

  __device__ __forceinline__ const T* slice() const { return shared_ + slot_ * kSlice; }

  // A barrier of the block, after which the first slice is there.
  __device__ void begin() const {
    wait_copies<slots - 1>();
    __syncthreads();
  }

  // A barrier of the block, after which the next slice is there and the last one has been read.
  __device__ __forceinline__ void next() {
    wait_copies<slots - 2>();
    __syncthreads();
    slot_ = slot_ + 1 == slots ? 0 : slot_ + 1;
  }

  // Gives the place of the slice before this one to another, between next() and advance().
  __device__ __forceinline__ void refill() { request(slot_ == 0 ? slots - 1 : slot_ - 1); }

  __device__ __forceinline__ void advance() {
    k_ += kDepth;
    from_ += along_k_ ? kDepth * plan_.columns() : kDepth;
    if (k_ < plan_.depth()) return;
    k_ = 0;
    ++matrix_;
    open();
  }

 private:
  static constexpr int kChunksAcross = width / 8;
  static constexpr int kRowsACopy = kThreads / kChunksAcross;

  __device__ __forceinline__ void request(int slot) {
    T* const to = shared_ + slot * kSlice;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int swizzled = place_ ^ (along_k_ ? swizzle(kRowsACopy * i) * 8 : 0);
      if (i < copies_) copy_async(to + swizzled + i * kThreads * 8, from_ + i * stride_);
    }
    commit_copies();
  }

  // This thread's part in the copies of the next matrix.
  __device__ void open() {
    along_k_ = plan_.along_k(matrix_);
    const int thread = threadIdx.x, chunks = along_k_ ? kChunksAcross : kDepth / 8;
    const int row = thread / chunks, chunk = thread % chunks, rows = kThreads / chunks;
    const int pitch = along_k_ ? plan_.columns() : plan_.depth();
    place_ = along_k_ ? place<width>(row, chunk) : place<kDepth>(row, chunk);
    from_ = static_cast<const T*>(plan_.matrix(matrix_)) + row * pitch + chunk * 8;
    stride_ = rows * pitch;
    copies_ = along_k_ ? chunk * 8 < pitch ? kCopies : 0 : plan_.columns() / rows;
    if (matrix_ >= plan_.count()) copies_ = 0;
  }

  const Plan plan_;
  T* shared_;
  const T* from_ = nullptr;
  int slot_ = 0, matrix_ = 0, k_ = 0, place_ = 0, stride_ = 0, copies_ = 0;
  bool along_k_ = false;
};

// sums += a w, w the stream's next matrix; all threads take part, those not `active` by waiting.
template <class T, class A, class B, int M, int N, class Weights>
__device__ __forceinline__ void multiply(Sums<M, N>& sums, const A& walk_a, const T* panel_a,
                                         const B& walk_b, Weights& weights, int depth,
                                         bool active) {
  if (!active) {
    for (int k = 0; k < depth; k += kDepth) {
      weights.next();
      weights.refill();
      weights.advance();
    }
    return;
  }
  Fragments<M, N> fragments[2];
  fragments[0].load(walk_a, panel_a, 0, walk_b, weights.slice(), 0);
#pragma unroll 1
  for (int k = 0; k < depth; k += kDepth) {
    fragments[1].load(walk_a, panel_a, k + 16, walk_b, weights.slice(), 16);
    sums.template add_product<T>(fragments[0]);
    weights.next();
    if (k + kDepth < depth) {
      fragments[0].load(walk_a, panel_a, k + kDepth, walk_b, weights.slice(), 0);
    }
    weights.refill();
    sums.template add_product<T>(fragments[1]);
    weights.advance();
  }
}

}  // namespace fastdiff::attention
