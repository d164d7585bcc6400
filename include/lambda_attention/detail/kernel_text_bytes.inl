// The kernels of an ISA that multiplies bytes: those of the ISA below, and products of rows of bytes for a few queries; see
// kernels.hpp.

#include <lambda_attention/detail/single_position_bytes.inl>

template <class Real>
struct kernels {
  static const position_kernels<Real>& one_position();
};
template <class Real>
const position_kernels<Real>& kernels<Real>::one_position() {
  static constexpr position_kernels<Real> functions = {
      max_tile_vectors,      most_queries_by_position, 2,         score_rows, avx512::adjust_scores<Real>,
      avx512::softmax<Real>, avx512::softmax<Real>,    add_values};
  return functions;
}
