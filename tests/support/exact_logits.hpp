// Inputs whose logits a test chooses, of numbers that every element type and every storage keeps exactly: what is then
// wrong is the arithmetic.
#pragma once

#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>

#include <support/call.hpp>
#include <support/random_tensor.hpp>

namespace support {

/// The logit of query i and key j is factor(i) * level(j) * step in log2, the unit of the kernels: whole levels within +-2047,
/// whole factors within +-8. A step that bfloat16 has stays exact also where queries are rounded to that.
struct exact_logits {
  int (*level)(index_t key);
  int (*factor)(index_t query);
  double step;

  double scale() const { return step * 0.693147180559945309417; }
};

inline int always_one(index_t) { return 1; }

/// Calls use(position, its name) without an encoding and with a rotation of the first half of the dims, which leaves the
/// logits as they are.
template <class Use>
void with_and_without_rope(index_t head_dim, Use&& use) {
  lambda_attention::rope_options options;
  options.rotary_dim = head_dim / 4 * 2;
  use(lambda_attention::none(), "none");
  use(lambda_attention::rope(head_dim, 10000, options), "rope");
}

/// Inputs that have these logits where options.scale is that of the logits. The scale of a row of bytes is 1 (of values: `unit`,
/// a power of two), for the largest number is 127, whatever a rotation makes of the others:
///
///     query    0 ... 0               0     factor           16 factor         head_dim >= 8
///     key      small numbers       127     level mod 16     level / 16
///     value    127, whole numbers below that, all times `unit`
inline inputs<> with_logits(generator& random, const extents& e, const exact_logits& logits, float unit = 1) {
  inputs<> in = {tensor<float>(e.tokens, e.heads(), e.head_dim), tensor<float>(e.tokens, e.kv_heads, e.head_dim),
                 tensor<float>(e.tokens, e.kv_heads, e.v_head_dim)};
  const auto whole = [&](index_t most) { return static_cast<float>(draw(random, -most, most)); };
  const index_t d = e.head_dim;
  for (index_t t = 0; t < e.tokens; ++t) {
    for (index_t h = 0; h < e.heads(); ++h) {
      float* const q = in.q.view().row(t, h);
      for (index_t i = 0; i < d - 2; ++i) q[i] = 0;
      q[d - 2] = static_cast<float>(logits.factor(t));
      q[d - 1] = static_cast<float>(16 * logits.factor(t));
    }
    for (index_t h = 0; h < e.kv_heads; ++h) {
      float* const k = in.k.view().row(t, h);
      for (index_t i = 0; i < d - 3; ++i) k[i] = whole(60);
      k[d - 3] = 127;
      k[d - 2] = static_cast<float>(logits.level(t) % 16);
      k[d - 1] = static_cast<float>(logits.level(t) / 16);
      float* const v = in.v.view().row(t, h);
      for (index_t i = 0; i < e.v_head_dim; ++i) v[i] = (i == 0 ? 127 : whole(127)) * unit;
    }
  }
  return in;
}

/// The same numbers in another type, which is to have them.
template <class T, class From>
tensor<T> converted(const tensor<From>& source) {
  const tensor_view<const From> from = source.view();
  tensor<T> result(from.tokens, from.heads, from.dim);
  for (index_t t = 0; t < from.tokens; ++t)
    for (index_t h = 0; h < from.heads; ++h)
      for (index_t d = 0; d < from.dim; ++d)
        result.view().row(t, h)[d] = element<T>(static_cast<double>(from.row(t, h)[d]));
  return result;
}
template <class T>
inputs<T> converted(const inputs<>& in) {
  return {converted<T>(in.q), converted<T>(in.k), converted<T>(in.v)};
}

}  // namespace support
