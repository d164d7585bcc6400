// The kernels of an ISA that multiplies pairs of bfloat16s: those of the ISA below, and products of pairs; see kernels.hpp.

#include <lambda_attention/detail/operands_pairs.inl>

#include <lambda_attention/detail/tile.inl>

#include <lambda_attention/detail/single_position_bytes.inl>

#include <lambda_attention/detail/single_position_pairs.inl>

template <class Real>
struct kernels {
  static const kernel_table<Real>& table();
};
template <class Real>
const kernel_table<Real>& kernels<Real>::table() {
  static constexpr kernel_table<Real> functions = [] {
    kernel_table<Real> with_pairs = table_of_kernels<Real>();
    with_pairs.add_pair_keys = add_keys<Real>;
    with_pairs.pack_pairs = pack<Real>;
    with_pairs.write_pairs = write_pairs;
    with_pairs.join_values = join_values;
    with_pairs.softmax_in_pairs = softmax<Real>;
    with_pairs.score_rows = score_rows;
    with_pairs.add_values = add_values;
    return with_pairs;
  }();
  return functions;
}
