// Normal numbers that are the same on every machine and under every compiler flag.
#pragma once

#include <lambda_attention/config.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace bench {

using lambda_attention::index_t;

/// The numbers of one seed come in one order, so a shorter tensor is the beginning of a longer one. splitmix64 and
/// Box-Muller: no product is followed by a sum, so no compiler can contract them into other numbers.
class normal_source {
 public:
  explicit normal_source(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u) {}

  float next() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const std::uint64_t bits = next_bits();
    const float uniform = static_cast<float>((bits >> 40) + 1) * 0x1p-24f;  // in (0, 1]
    const float angle = static_cast<float>(bits & 0xffffff) * (0x1p-24f * 6.2831853f);
    const float radius = std::sqrt(-2 * std::log(uniform));
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

  std::uint64_t next_bits() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t bits = state_;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return bits ^ (bits >> 31);
  }

 private:
  std::uint64_t state_;
  float spare_ = 0;
  bool has_spare_ = false;
};

template <class T>
std::vector<T> normal_values(index_t count, std::uint64_t seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  normal_source source(seed);
  for (T& value : values) value = static_cast<T>(source.next());
  return values;
}

}  // namespace bench
