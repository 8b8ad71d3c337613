// What cpu_targets.h compiles for each kind of processor: some rows of a panel.

// Three of a column or row of a 3x3 kernel -> four.
FASTDIFF_INLINE void transform_kernel(const Floats& a, const Floats& b, const Floats& c,
                                      Floats (&to)[4]) {
  const Floats outer = 0.5f * (a + c), middle = 0.5f * b;
  to[0] = a, to[1] = outer + middle, to[2] = outer - middle, to[3] = c;
}

// One row's kernels of a panel, tap by tap; those beyond the last column stay zero.
FASTDIFF_INLINE void gather(const PackParams& p, const float* from, std::int64_t count,
                            float (&taps)[9][kPanel]) {
  for (int tap = 0; tap < 9; ++tap) {
    const float* at = from + tap / 3 * p.y_stride + tap % 3 * p.x_stride;
    for (std::int64_t i = 0; i < count; ++i) taps[tap][i] = at[i * p.column_stride];
  }
}

inline void pack(const PackParams& p, std::int64_t panel, const Range& rows) {
  const std::int64_t first = panel * kPanel, count = std::min(kPanel, p.columns - first);
  float* to = p.packed + (panel * 16 * p.rows + rows.first) * kPanel;
  float taps[9][kPanel] = {};
  for (std::int64_t row = rows.first; row < rows.last; ++row, to += kPanel) {
    gather(p, p.weight + row * p.row_stride + first * p.column_stride, count, taps);
    for (std::int64_t v = 0; v < kPanel; v += kLanes) {
      Floats half[4][3], four[4];
      for (int x = 0; x < 3; ++x) {
        transform_kernel(load(taps[x] + v), load(taps[3 + x] + v), load(taps[6 + x] + v), four);
        for (int i = 0; i < 4; ++i) half[i][x] = four[i];
      }
      for (int i = 0; i < 4; ++i) {
        transform_kernel(half[i][0], half[i][1], half[i][2], four);
        for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * p.rows * kPanel + v, four[j]);
      }
    }
  }
}
