// Turns rows by a position encoding.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/position.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The angles of consecutive positions, in memory that the owner of the turner provides: angle_count Reals for each,
// aligned.
template <class Real>
class row_turner {
 public:
  static index_t angle_count(const position_data& encoding) {
    return 2 * round_up(encoding.rotation.num_pairs, row_multiple);
  }
  static constexpr index_t max_angle_count = max_head_dim;

  row_turner(const kernel_table<Real>& kernels, const position_data& encoding, index_t dim, Real* angles)
      : kernels_(kernels), encoding_(encoding), dim_(dim), angles_(angles) {}

  // The rows that follow are turned to these positions.
  void move_to(std::uint64_t first, index_t count = 1) { move(first, count, encoding_.rotation.factor); }
  // The rows that follow have been through the rotation, factor and all, and are turned on by so many positions; modulo 2^64,
  // so that -1 is one back. Not for encodings that turn rows by a function.
  void move_on_by(std::uint64_t first, index_t count = 1) { move(first, count, 1); }

  // turned = R(position) row, for position i of those. The two may not overlap.
  void turn(const Real* row, Real* turned, index_t i = 0) const {
    if (encoding_.rotation.num_pairs > 0) {
      kernels_.rotate(encoding_.rotation, angles_ + i * angle_count(encoding_), dim_, row, turned);
      return;
    }
    std::memcpy(turned, row, static_cast<std::size_t>(dim_) * sizeof(Real));
    if (!encoding_.has_function()) return;
    const std::uint64_t position = first_ + static_cast<std::uint64_t>(i);
    if constexpr (sizeof(Real) == sizeof(float)) {
      encoding_.function.turn_f32(encoding_.function.self, position, turned, dim_);
    } else {
      encoding_.function.turn_f64(encoding_.function.self, position, turned, dim_);
    }
  }

 private:
  void move(std::uint64_t first, index_t count, double factor) {
    if (count == count_ && first == first_ && factor == factor_) return;
    first_ = first;
    count_ = count;
    factor_ = factor;
    rotation_data rotation = encoding_.rotation;
    rotation.factor = factor;
    if (rotation.num_pairs > 0) kernels_.cos_sin(rotation, first, count, angles_);
  }

  const kernel_table<Real>& kernels_;
  position_data encoding_;
  index_t dim_;
  Real* angles_;
  std::uint64_t first_ = 0;
  index_t count_ = 0;
  double factor_ = 1;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
