// Every product and every sum is rounded by itself, so the compiler may not fuse them.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include "philox.h"

#include <algorithm>
#include <utility>

#include "cpu_vector.h"

namespace fastdiff {
namespace {

// Vectors are as wide as a processor's registers: wider ones are lowered badly.
template <int lanes>
struct Words {
  typename Vectors<lanes>::U w[4];
};

template <int lanes, class U = typename Vectors<lanes>::U>
FASTDIFF_INLINE void multiply(const U& a, std::uint32_t by, U& high, U& low) {
  using Wide = typename Vectors<lanes>::Wide;
  const Wide words = bit_cast<Wide>(a);
  const Wide even = (words & 0xffffffffu) * by, odd = (words >> 32) * by;
  high = bit_cast<U>(even >> 32 | (odd & ~0xffffffffull));
  low = bit_cast<U>((even & 0xffffffffull) | odd << 32);
}

// Philox4x32-10 (Salmon et al. 2011), a counter in each lane.
template <int lanes>
FASTDIFF_INLINE Words<lanes> philox(Words<lanes> c, std::uint64_t seed) {
  std::uint32_t key0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    typename Vectors<lanes>::U high0, low0, high1, low1;
    multiply<lanes>(c.w[0], 0xD2511F53u, high0, low0);
    multiply<lanes>(c.w[2], 0xCD9E8D57u, high1, low1);
    c = {{high1 ^ c.w[1] ^ key0, low1, high0 ^ c.w[3] ^ key1, low0}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

template <int n, class F>
FASTDIFF_INLINE F horner(const float (&coefficients)[n], const F& x) {
  F total = F{} + coefficients[n - 1];
  for (int i = n - 2; i >= 0; --i) total = x * total + coefficients[i];
  return total;
}

template <int lanes, class F = typename Vectors<lanes>::F>
FASTDIFF_INLINE F log(const F& u) {
  using I = typename Vectors<lanes>::I;
  const float terms[] = {-0x1.00006cp-1f, 0x1.5558f4p-2f, -0x1.ff6978p-3f, 0x1.97b1a4p-3f,
                         -0x1.61212cp-3f, 0x1.4b5dc8p-3f, -0x1.9d03acp-4f};
  const I shifted = bit_cast<I>(u) + (0x3f800000 - 0x3f3504f3);
  const F exponent = __builtin_convertvector((shifted >> 23) - 127, F);
  const F f = bit_cast<F>((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
  return exponent * 0x1.62e430p-1f + (f * f * horner(terms, f) + f);
}

// Box-Muller by NOTES.md's polynomials: two words of each lane to two normals.
template <int lanes, class U, class F>
FASTDIFF_INLINE void box_muller(const U& radius_word, const U& angle_word, F& z0, F& z1) {
  using I = typename Vectors<lanes>::I;
  const float sine[] = {-0x1.555546p-3f, 0x1.11077ep-7f, -0x1.9956b6p-13f};
  const float cosine[] = {-0x1p-1f, 0x1.55554ap-5f, -0x1.6c0c1ap-10f, 0x1.99e0eep-16f};
  const F u = __builtin_convertvector(radius_word, F) * 0x1p-32f + 0x1p-33f;
  const F squared = log<lanes>(u) * -2.0f;
  F r{};
  for (int i = 0; i < lanes; ++i) r[i] = __builtin_sqrtf(squared[i]);

  const I angle = bit_cast<I>(angle_word & 0x3fffffffu) - 0x20000000;
  const F x = __builtin_convertvector(angle, F) * 0x1.921fb6p-30f;
  const F y = x * x;
  const F s = x * y * horner(sine, y) + x;
  const F c = y * horner(cosine, y) + 1.0f;
  // Quadrants 1 and 3 swap the two; the cosine is negative in 1 and 2, the sine in 2 and 3.
  const U quadrant = angle_word >> 30;
  const I odd = (quadrant & 1u) != 0u;
  const F a = odd ? s : c, b = odd ? c : s;
  const U sign_a = ((quadrant + 1u) & 2u) << 30, sign_b = (quadrant & 2u) << 30;
  z0 = r * bit_cast<F>(bit_cast<U>(a) ^ sign_a);
  z1 = r * bit_cast<F>(bit_cast<U>(b) ^ sign_b);
}

// a[first], b[first], a[first + 1], b[first + 1] and so on.
template <int first, class F, std::size_t... i>
FASTDIFF_INLINE F weave(const F& a, const F& b, std::index_sequence<i...>) {
  return __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * sizeof...(i))...);
}

// The 4 * lanes normals of the counters from `group` on.
template <int lanes>
FASTDIFF_INLINE void block(const NoiseSource& source, std::int64_t group, float* to) {
  using F = typename Vectors<lanes>::F;
  using U = typename Vectors<lanes>::U;
  U lane{};
  for (int i = 0; i < lanes; ++i) lane[i] = i;
  const auto word = [](std::int64_t value)
                        FASTDIFF_LAMBDA_INLINE { return U{} + static_cast<std::uint32_t>(value); };
  const std::int64_t last = source.stream | (source.sample >> 32 & 0xffff) << 16;
  const Words<lanes> words = philox<lanes>({{lane + static_cast<std::uint32_t>(group),
                                             word(source.sample), word(source.draw), word(last)}},
                                           source.seed);
  F z[4];
  box_muller<lanes>(words.w[0], words.w[1], z[0], z[1]);
  box_muller<lanes>(words.w[2], words.w[3], z[2], z[3]);
  constexpr auto all = std::make_index_sequence<lanes>();
  const F even[] = {weave<0>(z[0], z[2], all), weave<lanes / 2>(z[0], z[2], all)};
  const F odd[] = {weave<0>(z[1], z[3], all), weave<lanes / 2>(z[1], z[3], all)};
  const F woven[] = {weave<0>(even[0], odd[0], all), weave<lanes / 2>(even[0], odd[0], all),
                     weave<0>(even[1], odd[1], all), weave<lanes / 2>(even[1], odd[1], all)};
  std::memcpy(to, woven, sizeof(woven));
}

template <int lanes>
FASTDIFF_INLINE void blocks(const NoiseSource& source, std::int64_t first, std::int64_t count,
                            float* to) {
  constexpr std::int64_t kBlock = 4 * lanes;
  const std::int64_t end = first + count;
  for (std::int64_t at = first / 4 * 4; at < end; at += kBlock) {
    if (at >= first && at + kBlock <= end) {
      block<lanes>(source, at / 4, to + (at - first));
      continue;
    }
    float whole[kBlock];
    block<lanes>(source, at / 4, whole);
    const std::int64_t from = std::max(at, first), until = std::min(at + kBlock, end);
    std::copy(whole + (from - at), whole + (until - at), to + (from - first));
  }
}

using Normals = void(const NoiseSource&, std::int64_t, std::int64_t, float*);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("arch=x86-64-v4"), flatten)) void by_16(const NoiseSource& source,
                                                              std::int64_t first,
                                                              std::int64_t count, float* to) {
  blocks<16>(source, first, count, to);
}

__attribute__((target("arch=x86-64-v3"), flatten)) void by_8(const NoiseSource& source,
                                                             std::int64_t first, std::int64_t count,
                                                             float* to) {
  blocks<8>(source, first, count, to);
}
#endif

void by_4(const NoiseSource& source, std::int64_t first, std::int64_t count, float* to) {
  blocks<4>(source, first, count, to);
}

Normals* widest() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("x86-64-v4")) return by_16;
  if (__builtin_cpu_supports("x86-64-v3")) return by_8;
#endif
  return by_4;
}

}  // namespace

void normals(const NoiseSource& source, std::int64_t first, std::int64_t count, float* to) {
  static Normals* const kernel = widest();
  kernel(source, first, count, to);
}

}  // namespace fastdiff
