// The kernels of an ISA that multiplies matrices of bfloat16s: those of the ISA below, and products of tiles; see kernels.hpp.

#include <lambda_attention/detail/tile_matrices.inl>

template <class Real>
struct kernels {
  static const pair_kernels<Real>& table();
};
template <class Real>
const pair_kernels<Real>& kernels<Real>::table() {
  static constexpr pair_kernels<Real> functions = {keys_per_step, dims_per_step, add_keys<Real>,
                                                   pack<Real>,    write_pairs,   join_values};
  return functions;
}
