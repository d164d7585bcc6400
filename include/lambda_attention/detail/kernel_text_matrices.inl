// The kernels of an ISA that multiplies matrices of bfloat16s: those of the ISA below, and products of matrices; see
// kernels.hpp.

#include <lambda_attention/detail/tile_matrices.inl>

#include <lambda_attention/detail/single_position_matrices.inl>

template <class Real>
struct kernels {
  static const pair_kernels<Real>& table();
  static const position_kernels<Real>& one_position();
};
template <class Real>
const pair_kernels<Real>& kernels<Real>::table() {
  static constexpr pair_kernels<Real> functions = {keys_per_step, dims_per_step, add_keys<Real>,
                                                   pack<Real>,    write_pairs,   join_values};
  return functions;
}
template <class Real>
const position_kernels<Real>& kernels<Real>::one_position() {
  static constexpr position_kernels<Real> functions = {
      most_queries,          most_queries,         fewest_queries, score_rows, avx512::adjust_scores<Real>,
      avx512::softmax<Real>, pairs::softmax<Real>, add_values};
  return functions;
}
