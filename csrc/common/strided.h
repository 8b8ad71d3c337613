// Tensors as the elementwise CPU kernels see them: [N, C, spatial], whatever their memory format.
#pragma once

#include <algorithm>

#include "cpu_vector.h"
#include "dtype.h"

namespace fastdiff {

// A tensor whose spatial axes lie evenly; `data` is null where the caller gave none.
struct Strided {
  void* data = nullptr;
  std::int64_t sample_stride = 0, channel_stride = 0, stride = 1;
  DType dtype = DType::float32;
};

// A whole number by sample, such as its step.
struct BySample {
  const std::int64_t* data = nullptr;
  std::int64_t stride = 0;

  std::int64_t operator[](std::int64_t sample) const { return data[sample * stride]; }
};

// A run of a kernel's work: elements first to first + count - 1 of one channel of one sample.
struct Run {
  std::int64_t sample, channel, first;
  int count;
};

constexpr int kRun = 1024;

// The batch cut into runs, neighbouring channels of the same pixels one after another.
struct Runs {
  std::int64_t batch, channels, spatial;

  std::int64_t by_channel() const { return (spatial + kRun - 1) / kRun; }
  std::int64_t count() const { return batch * channels * by_channel(); }
  Run operator[](std::int64_t i) const {
    const std::int64_t channel = i % channels, tile = i / channels;
    const std::int64_t first = tile % by_channel() * kRun;
    return {tile / by_channel(), channel, first,
            static_cast<int>(std::min<std::int64_t>(kRun, spatial - first))};
  }
};

// f(i, lanes) for every vector of `count` values; only the last may have fewer than kLanes.
template <class F>
FASTDIFF_INLINE void by_vector(int count, const F& f) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, count - i);
}

template <class T>
FASTDIFF_INLINE T* start(const Strided& v, const Run& run) {
  return static_cast<T*>(v.data) + run.sample * v.sample_stride + run.channel * v.channel_stride +
         run.first * v.stride;
}

// Asks for the run's memory, which comes while its noise is made; hardware alone stops at pages.
FASTDIFF_INLINE void prefetch(const Strided& v, const Run& run) {
  if (v.data == nullptr || v.stride != 1) return;
  const int size = v.dtype == DType::float32 ? 4 : 2;
  const std::int64_t first =
      run.sample * v.sample_stride + run.channel * v.channel_stride + run.first;
  const char* from = static_cast<const char*>(v.data) + first * size;
  for (int i = 0; i < run.count * size; i += 64) __builtin_prefetch(from + i);
}

template <class T>
FASTDIFF_INLINE const float* read_as(const Strided& v, const Run& run, float* buffer) {
  const T* from = start<const T>(v, run);
  T packed[kRun];
  if (v.stride != 1) {
    for (int i = 0; i < run.count; ++i) packed[i] = from[i * v.stride];
    from = packed;
  }
  by_vector(run.count, [&](int i, int lanes) FASTDIFF_LAMBDA_INLINE {
    store(buffer + i, load(from + i, lanes), lanes);
  });
  return buffer;
}

// The run's values in float32: where they lie, or in `buffer`; null where the tensor is not given.
FASTDIFF_INLINE const float* read(const Strided& v, const Run& run, float* buffer) {
  if (v.data == nullptr) return nullptr;
  switch (v.dtype) {
    case DType::float32:
      return v.stride == 1 ? start<const float>(v, run) : read_as<float>(v, run, buffer);
    case DType::float16:
      return read_as<Float16>(v, run, buffer);
    default:
      return read_as<BFloat16>(v, run, buffer);
  }
}

// Where to compute the run's values: in place, or in `buffer` for `write` to bring home.
FASTDIFF_INLINE float* destination(const Strided& v, const Run& run, float* buffer) {
  const bool direct = v.data != nullptr && v.dtype == DType::float32 && v.stride == 1;
  return direct ? start<float>(v, run) : buffer;
}

template <class T>
FASTDIFF_INLINE void write_as(const Strided& v, const Run& run, const float* values) {
  T* to = start<T>(v, run);
  T packed[kRun];
  T* rounded = v.stride == 1 ? to : packed;
  by_vector(run.count, [&](int i, int lanes) FASTDIFF_LAMBDA_INLINE {
    store(rounded + i, load(values + i, lanes), lanes);
  });
  if (v.stride == 1) return;
  for (int i = 0; i < run.count; ++i) to[i * v.stride] = packed[i];
}

FASTDIFF_INLINE void write(const Strided& v, const Run& run, const float* values) {
  if (v.data == nullptr || destination(v, run, nullptr) == values) return;
  switch (v.dtype) {
    case DType::float32:
      return write_as<float>(v, run, values);
    case DType::float16:
      return write_as<Float16>(v, run, values);
    default:
      return write_as<BFloat16>(v, run, values);
  }
}

}  // namespace fastdiff
