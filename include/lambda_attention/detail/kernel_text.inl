// The kernels, one text for every instruction set; see kernels.hpp. Nothing here may instantiate a function template of
// std or of Eigen: such code would be compiled for this ISA and shared with units that run without it.

#include <lambda_attention/detail/vectors.inl>

#include <lambda_attention/detail/rows.inl>

#include <lambda_attention/detail/operands_numbers.inl>

#include <lambda_attention/detail/tile.inl>

#include <lambda_attention/detail/single_position.inl>

template <class Real>
constexpr kernel_table<Real> table_of_kernels() {
  return {
      vectors<Real>::lanes, tile_vectors,  begin_tile<Real>, add_keys<Real>,   pack<Real>,
      unpack<Real>,         nullptr,       nullptr,          nullptr,          nullptr,
      cos_sin<Real>,        rotate<Real>,  read_row<Real>,   write_row<Real>,  score_rows<Real>,
      adjust_scores<Real>,  softmax<Real>, nullptr,          add_values<Real>,
  };
}

// Not an inline function, so that `extern template` keeps a unit from compiling the kernels: see kernels_elsewhere.hpp.
template <class Real>
struct kernels {
  static const kernel_table<Real>& table();
};
template <class Real>
const kernel_table<Real>& kernels<Real>::table() {
  static constexpr kernel_table<Real> functions = table_of_kernels<Real>();
  return functions;
}
