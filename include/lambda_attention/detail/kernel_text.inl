// The kernels, one text for every instruction set; see kernels.hpp. Nothing here may instantiate a function template of
// std or of Eigen: such code would be compiled for this ISA and shared with units that run without it.

#include <lambda_attention/detail/vectors.inl>

#include <lambda_attention/detail/rows.inl>

#include <lambda_attention/detail/operands_numbers.inl>

#include <lambda_attention/detail/tile.inl>

#include <lambda_attention/detail/fetching.inl>

#include <lambda_attention/detail/single_position.inl>

// Not inline functions, so that `extern template` keeps a unit from compiling the kernels: see kernels_elsewhere.hpp.
template <class Real>
struct kernels {
  static const kernel_table<Real>& table();
  static const position_kernels<Real>& one_position();
};
template <class Real>
const kernel_table<Real>& kernels<Real>::table() {
  static constexpr kernel_table<Real> functions = {
      vectors<Real>::lanes, tile_vectors,  begin_tile<Real>, add_keys<Real>, pack<Real>,
      unpack<Real>,         cos_sin<Real>, rotate<Real>,     read_row<Real>, write_row<Real>,
  };
  return functions;
}
template <class Real>
const position_kernels<Real>& kernels<Real>::one_position() {
  static constexpr position_kernels<Real> functions = {
      max_tile_vectors, most_queries_by_position, 2, score_rows<Real>, adjust_scores<Real>, softmax<Real>,
      softmax<Real>,    add_values<Real>,
  };
  return functions;
}
