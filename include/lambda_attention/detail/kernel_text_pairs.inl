// The kernels of an ISA that multiplies pairs of bfloat16s: those of the ISAs below, and products of pairs; see kernels.hpp.

#include <lambda_attention/detail/operands_pairs.inl>

#include <lambda_attention/detail/tile.inl>

#include <lambda_attention/detail/single_position_pairs.inl>

template <class Real>
struct kernels {
  static const pair_kernels<Real>& table();
  static const position_kernels<Real>& one_position();
};
template <class Real>
const pair_kernels<Real>& kernels<Real>::table() {
  static constexpr pair_kernels<Real> functions = {numbers_per_word, 1,           add_keys<Real>,
                                                   pack<Real>,       write_pairs, join_values};
  return functions;
}
template <class Real>
const position_kernels<Real>& kernels<Real>::one_position() {
  static constexpr position_kernels<Real> functions = {max_tile_vectors,
                                                       most_queries_by_position,
                                                       2,
                                                       score_rows,
                                                       avx512::adjust_scores<Real>,
                                                       avx512::softmax<Real>,
                                                       softmax<Real>,
                                                       add_values};
  return functions;
}
