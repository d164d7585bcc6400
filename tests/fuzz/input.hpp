// What an input's bytes are spent on: choices and numbers, one after the other.
#pragma once

#include <lambda_attention/config.hpp>

#include <support/random_tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fuzz {

using lambda_attention::index_t;
using lambda_attention::unlimited;

/// What no input may cause. A fuzzer stops at it, a test fails with its message.
struct failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Zeros once the bytes have ended. Zero is the plainest choice everywhere, so that short inputs are plain ones.
class input {
 public:
  input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  bool ended() const { return at_ == end_; }
  index_t byte() { return ended() ? 0 : *at_++; }

  /// A number in [0, limit), 0 < limit <= 256.
  index_t below(index_t limit) { return byte() % limit; }
  index_t between(index_t first, index_t last) { return first + below(last - first + 1); }
  bool one_in(index_t of) { return below(of) == of - 1; }

  template <class T, std::size_t Size>
  T one_of(const T (&choices)[Size]) {
    return choices[below(static_cast<index_t>(Size))];
  }

  std::uint64_t word() {
    std::uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 8) result |= static_cast<std::uint64_t>(byte()) << shift;
    return result;
  }

  /// An index near an edge, or any.
  index_t hostile() {
    constexpr index_t edges[] = {0,
                                 -1,
                                 1,
                                 2,
                                 3,
                                 512,
                                 513,
                                 INT32_MAX,
                                 index_t{1} << 31,
                                 index_t{1} << 32,
                                 index_t{1} << 40,
                                 (index_t{1} << 53) + 1,
                                 (index_t{1} << 60) - 1,
                                 index_t{1} << 61,
                                 (index_t{1} << 62) - 1,
                                 index_t{1} << 62,
                                 INT64_MAX - 100,
                                 INT64_MAX - 1,
                                 INT64_MAX,
                                 INT64_MIN,
                                 INT64_MIN + 1};
    return one_in(8) ? static_cast<index_t>(word()) : one_of(edges);
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

/// Numbers of rows. An input gives them a seed: its own bytes are for what decides how a call runs.
class numbers {
 public:
  explicit numbers(std::uint64_t seed) : state_(seed) {}

  index_t below(index_t limit) { return static_cast<index_t>(next() % static_cast<std::uint64_t>(limit)); }
  double within(double largest) { return largest * (static_cast<double>(next() >> 11) * 0x1p-52 - 1); }

  /// Any numbers within 2.
  template <class T>
  void fill(T* row, index_t dim) {
    for (index_t d = 0; d < dim; ++d) row[d] = support::element<T>(within(2));
  }

  /// Multiples of 1/32 that no storage rounds: 8 bits are enough, and int8's scale, a 127th of the largest, is 1/32.
  template <class T>
  void fill_exactly(T* row, index_t dim) {
    for (index_t d = 0; d < dim; ++d) row[d] = support::element<T>(static_cast<double>(below(255) - 127) / 32);
    if (dim > 0) row[below(dim)] = support::element<T>(next() % 2 == 0 ? 127. / 32 : -127. / 32);
  }

 private:
  // SplitMix64.
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

/// A random input: its length, then its bytes.
inline std::vector<std::uint8_t> random_input(std::uint64_t seed, std::size_t longest) {
  support::generator random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(support::draw(random, 0, static_cast<index_t>(longest))));
  for (std::uint8_t& b : bytes) b = static_cast<std::uint8_t>(random());
  return bytes;
}

}  // namespace fuzz
