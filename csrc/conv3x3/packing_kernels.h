// What cpu_targets.h compiles for each kind of processor: some rows of a panel, in float64 as it is
// rounded once.

using Columns = double[kPanel];  // of one tap

// Three of a column or row of a 3x3 kernel -> four.
FASTDIFF_INLINE void transform_kernel(const Columns& a, const Columns& b, const Columns& c,
                                      Columns (&to)[4]) {
  for (std::int64_t i = 0; i < kPanel; ++i) {
    const double outer = 0.5 * (a[i] + c[i]), middle = 0.5 * b[i];
    to[0][i] = a[i], to[1][i] = outer + middle, to[2][i] = outer - middle, to[3][i] = c[i];
  }
}

// One row's kernels of a panel, tap by tap; those beyond the last column stay zero.
FASTDIFF_INLINE void gather(const PackParams& p, const float* from, std::int64_t count,
                            Columns (&taps)[9]) {
  for (int tap = 0; tap < 9; ++tap) {
    const float* at = from + tap / 3 * p.y_stride + tap % 3 * p.x_stride;
    for (std::int64_t i = 0; i < count; ++i) taps[tap][i] = at[i * p.column_stride];
  }
}

inline void pack(const PackParams& p, std::int64_t panel, const Range& rows) {
  const std::int64_t first = panel * kPanel, count = std::min(kPanel, p.columns - first);
  float* to = static_cast<float*>(p.packed) + (panel * 16 * p.rows + rows.first) * kPanel;
  Columns taps[9] = {}, columns[3][4], four[4];
  for (std::int64_t row = rows.first; row < rows.last; ++row, to += kPanel) {
    gather(p, p.weight + row * p.row_stride + first * p.column_stride, count, taps);
    for (int x = 0; x < 3; ++x) transform_kernel(taps[x], taps[3 + x], taps[6 + x], columns[x]);
    for (int i = 0; i < 4; ++i) {
      transform_kernel(columns[0][i], columns[1][i], columns[2][i], four);
      for (int j = 0; j < 4; ++j) {
        float* at = to + (4 * i + j) * p.rows * kPanel;
        for (std::int64_t c = 0; c < kPanel; ++c) at[c] = static_cast<float>(four[j][c]);
      }
    }
  }
}
