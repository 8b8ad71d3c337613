// What cpu_targets.h compiles for each kind of processor: a head's keys and values laid out for
// products, and a block of its queries. Here in float32; tile_kernels.h has products of bfloat16.

#include "../common/cpu_products.h"
#include "../common/cpu_transpose.h"

// Where a head begins in a token; heads count over samples.
template <class T>
FASTDIFF_INLINE const T* head_of(const SelfAttentionParams& p, const Tokens& tokens,
                                 std::int64_t head, std::int64_t token) {
  const std::int64_t channel = head % p.heads * p.head_channels;
  return static_cast<const T*>(tokens.data) + head / p.heads * tokens.sample +
         token * tokens.token + channel;
}

template <class T>
FASTDIFF_INLINE T* mixed_of(const SelfAttentionParams& p, std::int64_t head, std::int64_t token) {
  const std::int64_t row = head / p.heads * p.tokens + token;
  return static_cast<T*>(p.y) + (row * p.heads + head % p.heads) * p.head_channels;
}

// The softmax of a block's rows, but for a factor by row.
class Softmax {
  const int rows_;
  const std::int64_t panels_;
  const int keys_;  // of the last panel
  const float scale_;
  Floats greatest_[kQueries], sums_[kQueries];
  float factors_[kQueries];

 public:
  Softmax(const SelfAttentionParams& p, int rows)
      : rows_(rows),
        panels_(divide_up(p.tokens, kPanel)),
        keys_(static_cast<int>(p.tokens - (panels_ - 1) * kPanel)),
        scale_(0x1.715476p0f / std::sqrt(static_cast<float>(p.head_channels))) {
    std::fill_n(greatest_, rows, splat(-std::numeric_limits<float>::infinity()));
    std::fill_n(sums_, rows, Floats{});
  }

  // Looks at scores [rows, kPanel], and empties those of no key.
  void add_panel(std::int64_t panel, float* scores) {
    const int keys = panel + 1 == panels_ ? keys_ : kPanel;
    for (int row = 0; row < rows_; ++row, scores += kPanel) {
      std::fill(scores + keys, scores + kPanel, std::numeric_limits<float>::lowest());
      Floats greatest = greatest_[row];
      for (int j = 0; j < kVectors; ++j) greatest = larger(load(scores + j * kLanes), greatest);
      greatest_[row] = greatest;
    }
  }

  void all_are_added() {
    for (int row = 0; row < rows_; ++row) {
      float greatest = greatest_[row][0];
      for (int lane = 1; lane < kLanes; ++lane) greatest = std::max(greatest, greatest_[row][lane]);
      greatest_[row] = splat(greatest * scale_);
    }
  }

  // put(row, weights) for the vectors of each row of a panel's scores; as exact as T can show.
  template <class T, class Put>
  FASTDIFF_INLINE void weigh(const float* scores, const Put& put) {
    const float scale = scale_;
    for (int row = 0, rows = rows_; row < rows; ++row, scores += kPanel) {
      Floats weights[kVectors], sum = sums_[row];
      for (int j = 0; j < kVectors; ++j) {
        weights[j] = power_of_two<T>(load(scores + j * kLanes) * scale - greatest_[row]);
        sum += weights[j];
      }
      sums_[row] = sum;
      put(row, weights);
    }
  }

  void all_are_weighed() {
    for (int row = 0; row < rows_; ++row) {
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums_[row][lane];
      factors_[row] = 1 / sum;
    }
  }

  // NaN where a score is NaN or the greatest infinite: it is then among the weights.
  float factor(std::int64_t row) const { return factors_[row]; }
};

// Panel `panel` of the mix of some rows, from what values weighed sum up to [rows, kPanel].
template <class T>
void store_mixed(const SelfAttentionParams& p, std::int64_t head, const Range& queries,
                 std::int64_t panel, const float* sums, const Softmax& softmax) {
  for (std::int64_t row = 0; row < queries.size(); ++row, sums += kPanel) {
    T* const to = mixed_of<T>(p, head, queries.first + row) + panel * kPanel;
    const float factor = softmax.factor(row);
    for (int j = 0; j < kVectors; ++j) {
      const int lanes = lanes_of<kLanes>(p.head_channels, panel * kPanel + j * kLanes);
      if (lanes > 0) store(to + j * kLanes, load(sums + j * kLanes) * factor, lanes);
    }
  }
}

// Products in float32 by multiply_panel: keys [panels, depth, kPanel of tokens], the depth filled
// up, and values [panels, tokens, kPanel of channels].
template <class T>
struct FloatHeads {
  static constexpr int kBlock = 16;

  static std::int64_t key_panels(const SelfAttentionParams& p) {
    return divide_up(p.tokens, kPanel);
  }
  static std::int64_t value_panels(const SelfAttentionParams& p) {
    return divide_up(p.head_channels, kPanel);
  }
  static std::int64_t depth(const SelfAttentionParams& p) {
    return divide_up(p.head_channels, kBlock) * kBlock;
  }
  static std::int64_t keys_size(const SelfAttentionParams& p) {
    return key_panels(p) * depth(p) * kPanel;
  }
  static std::int64_t packed_size(const SelfAttentionParams& p) {
    return keys_size(p) + value_panels(p) * p.tokens * kPanel;
  }
  static std::int64_t scratch_size(const SelfAttentionParams& p) {
    const std::int64_t vectors = chunks(p.head_channels) + chunks(p.tokens);
    return kQueries * (vectors * kRowStride + (key_panels(p) + 1) * kPanel);
  }

  // The keys and values of a panel of tokens.
  static void pack(const SelfAttentionParams& p, std::int64_t head, std::int64_t panel,
                   float* packed) {
    const std::int64_t first = panel * kPanel, last = std::min(first + kPanel, p.tokens);
    float* const keys = packed + first * depth(p);
    for (std::int64_t column = 0; column < kPanel; column += kBlock) {
      for (std::int64_t c = 0; c < depth(p); c += kBlock) {
        pack_keys(p, head, first + column, c, keys + c * kPanel + column);
      }
    }
    float* const values = packed + keys_size(p);
    for (std::int64_t token = first; token < last; ++token) {
      const T* const v = head_of<T>(p, p.v, head, token);
      for (std::int64_t c = 0; c < p.head_channels; c += kLanes) {
        const Floats value = load(v + c, lanes_of<kLanes>(p.head_channels, c));
        store(values + (c / kPanel * p.tokens + token) * kPanel + c % kPanel, value);
      }
    }
  }

  static void attend(const SelfAttentionParams& p, std::int64_t head, const Range& queries,
                     const float* packed, float* scratch) {
    const int rows = static_cast<int>(queries.size());
    float* const q = scratch;
    float* const weights = q + chunks(p.head_channels) * rows * kRowStride;
    float* const scores = weights + chunks(p.tokens) * rows * kRowStride;
    float* const sums = scores + key_panels(p) * rows * kPanel;
    for (int row = 0; row < rows; ++row) {
      const T* const from = head_of<T>(p, p.q, head, queries.first + row);
      row_to_chunks(from, p.head_channels, rows, q + row * kRowStride);
    }
    Softmax softmax(p, rows);
    for (std::int64_t panel = 0; panel < key_panels(p); ++panel) {
      float* const of_panel = scores + panel * rows * kPanel;
      multiply_panel(q, packed + panel * depth(p) * kPanel, rows, p.head_channels, of_panel);
      softmax.add_panel(panel, of_panel);
    }
    softmax.all_are_added();
    for (std::int64_t panel = 0; panel < key_panels(p); ++panel) {
      float* const to = weights + in_chunks(panel * kPanel, rows);
      const auto put = [&](int row, const Floats* of_row) FASTDIFF_LAMBDA_INLINE {
        for (int j = 0; j < kVectors; ++j) store(to + row * kRowStride + j * kLanes, of_row[j]);
      };
      softmax.weigh<T>(scores + panel * rows * kPanel, put);
    }
    softmax.all_are_weighed();
    const float* values = packed + keys_size(p);
    for (std::int64_t panel = 0; panel < value_panels(p); ++panel, values += p.tokens * kPanel) {
      multiply_panel(weights, values, rows, p.tokens, sums);
      store_mixed<T>(p, head, queries, panel, sums, softmax);
    }
  }

 private:
  static void pack_keys(const SelfAttentionParams& p, std::int64_t head, std::int64_t token,
                        std::int64_t channel, float* to) {
    float block[kBlock][kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const T* const from = head_of<T>(p, p.k, head, token + i) + channel;
      for (int j = 0; j < kBlock; j += kLanes) {
        const int lanes = token + i < p.tokens ? lanes_of<kLanes>(p.head_channels, channel + j) : 0;
        store(block[i] + j, lanes > 0 ? load(from + j, lanes) : Floats{});
      }
    }
    transpose_16x16(block, kBlock, to, kPanel);
  }
};

template <class Heads>
SelfAttention self_attention_by() {
  return {Heads::packed_size, Heads::scratch_size, Heads::pack, Heads::attend};
}

#include "tile_kernels.h"

inline SelfAttention self_attention(DType dtype, bool by_tiles, bool matrix_unit) {
  if (by_tiles && dtype == DType::bfloat16) {
#if FASTDIFF_LEVEL >= 5
    if (matrix_unit) return self_attention_by<TileHeads<MatrixUnitTiles>>();
#endif
    return self_attention_by<TileHeads<PlainTiles>>();
  }
  return for_dtype(dtype,
                   [](auto element) { return self_attention_by<FloatHeads<decltype(element)>>(); });
}
