// What cpu_targets.h compiles for each kind of processor: one task, in short sums of float32.

inline double sum_of_squares(const SquaresTask& task) {
  constexpr int kChains = 4;
  constexpr std::int64_t kRun = 32 * kChains * kLanes;  // longer sums round more
  double total = 0;
  for (std::int64_t first = task.begin; first < task.end; first += kRun) {
    const std::int64_t last = std::min(first + kRun, task.end);
    Floats sums[kChains] = {};
    std::int64_t i = first;
    for (; i + kChains * kLanes <= last; i += kChains * kLanes) {
      for (int k = 0; k < kChains; ++k) {
        const Floats x = load(task.x + i + k * kLanes);
        sums[k] += x * x;
      }
    }
    for (; i < last; i += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, last - i));
      const Floats x = load(task.x + i, count);
      sums[0] += x * x;
    }
    const Floats sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  }
  return total;
}
