// What cpu_targets.h compiles for each kind of processor: one task, each array read once.

inline void kernel(const AdamWTask& task) {
  const AdamWParams& p = *task.params;
  const auto update = [&](std::int64_t i, int count) FASTDIFF_LAMBDA_INLINE {
    const Floats gradient = load(p.gradient + i, count) * p.gradient_scale;
    const Floats mean = load(p.mean + i, count) * p.beta1 + gradient * p.new_mean;
    const Floats square = load(p.square + i, count) * p.beta2 + gradient * gradient * p.new_square;
    const Floats root = square_root(square) * p.inverse_root + p.eps;
    store(p.mean + i, mean, count);
    store(p.square + i, square, count);
    store(p.weight + i, load(p.weight + i, count) * p.kept - p.step_size * mean / root, count);
  };
  std::int64_t i = task.begin;
  for (; i + kLanes <= task.end; i += kLanes) update(i, kLanes);
  if (i < task.end) update(i, static_cast<int>(task.end - i));
}
