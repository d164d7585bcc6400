// Turns rows by a position encoding, one position at a time.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/position.hpp>

#include <cstdint>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The angles of one position, in memory that the owner of the turner provides: angle_count Reals, aligned.
template <class Real>
class row_turner {
 public:
  static constexpr index_t angle_count = max_head_dim;  // cosines and sines of at most max_head_dim / 2 pairs

  row_turner() = default;
  row_turner(const kernel_table<Real>& kernels, const position_data& encoding, index_t dim, Real* angles)
      : kernels_(&kernels), encoding_(encoding), dim_(dim), cosines_(angles), sines_(angles + angle_count / 2) {}

  // The rows that follow are turned to this position.
  void move_to(std::uint64_t position) {
    position_ = position;
    if (encoding_.rotation.num_pairs > 0) kernels_->cos_sin(encoding_.rotation, position, cosines_, sines_);
  }

  // turned = R(position) row. The two may not overlap.
  void turn(const Real* row, Real* turned) const {
    if (encoding_.rotation.num_pairs > 0) {
      kernels_->rotate(encoding_.rotation, cosines_, sines_, dim_, row, turned);
      return;
    }
    std::memcpy(turned, row, static_cast<std::size_t>(dim_) * sizeof(Real));
    if (encoding_.function.self == nullptr) return;
    if constexpr (sizeof(Real) == sizeof(float)) {
      encoding_.function.turn_f32(encoding_.function.self, position_, turned, dim_);
    } else {
      encoding_.function.turn_f64(encoding_.function.self, position_, turned, dim_);
    }
  }

 private:
  const kernel_table<Real>* kernels_ = nullptr;
  position_data encoding_;
  index_t dim_ = 0;
  std::uint64_t position_ = 0;
  Real* cosines_ = nullptr;
  Real* sines_ = nullptr;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
