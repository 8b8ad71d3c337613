// What cpu_targets.h compiles for each kind of processor: one task's pixels, from x to y.

#include "../common/cpu_products.h"

FASTDIFF_INLINE std::int64_t place(const Conv1x1Params& p, const Pixels& of, std::int64_t pixel) {
  const std::int64_t row = pixel / p.width;
  return row / p.height * of.sample + row % p.height * of.row + pixel % p.width * of.pixel;
}

template <class T>
void gather(const Conv1x1Params& p, const Range& pixels, T* patch, float* v) {
  const T* const x = static_cast<const T*>(p.x.data);
  for (std::int64_t pixel = pixels.first; pixel < pixels.last; ++pixel, v += kRowStride) {
    const T* from = patch;
    if (p.patches.channels == 0) {
      from = x + place(p, p.x, pixel);
    } else {
      const std::int64_t row = pixel / p.width;
      copy_patch(p.patches, p.x, x + row / p.height * p.x.sample, row % p.height, pixel % p.width,
                 patch);
    }
    row_to_chunks(from, p.channels, pixels.size(), v);
  }
}

template <class T>
void finish(const Conv1x1Params& p, const Range& pixels, std::int64_t panel, const float* m) {
  const std::int64_t O = p.out_channels;
  const T* residual = static_cast<const T*>(p.residual.data);
  for (int j = 0; j < kVectors; ++j) {
    const std::int64_t c = panel * kPanel + j * kLanes;
    if (c >= O) return;
    const int lanes = lanes_of<kLanes>(O, c);
    const Floats bias = p.bias ? load(static_cast<const T*>(p.bias) + c, lanes) : splat(0);
    const float* from = m + j * kLanes;
    for (std::int64_t pixel = pixels.first; pixel < pixels.last; ++pixel, from += kPanel) {
      Floats value = load(from) + bias;
      if (residual) value += load(residual + place(p, p.residual, pixel) + c, lanes);
      store(static_cast<T*>(p.y) + pixel * O + c, value * p.scale, lanes);
    }
  }
}

template <class T>
void convolve_pixels(const Conv1x1Params& p, const Range& pixels, const Range& panels,
                     Workspace& space) {
  const std::int64_t C = p.channels, v_size = chunks(C) * pixels.size() * kRowStride;
  float* v = space.at_least(v_size + pixels.size() * kPanel + C);
  float* m = v + v_size;
  gather(p, pixels, reinterpret_cast<T*>(m + pixels.size() * kPanel), v);
  for (std::int64_t panel = panels.first; panel < panels.last; ++panel) {
    multiply_panel(v, p.packed + panel * C * kPanel, pixels.size(), C, m);
    finish<T>(p, pixels, panel, m);
  }
}

inline Convolve convolve_pixels_for(DType dtype) {
  return for_dtype(dtype,
                   [](auto element) -> Convolve { return convolve_pixels<decltype(element)>; });
}
