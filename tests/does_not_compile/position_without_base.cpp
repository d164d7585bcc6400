// expected: lambda_attention: attend(q, k, v, shape, position, out): `position` must be a position encoding, a class that derives from position_encoding (rope, alibi, t5_bias, none, or your own)
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_encoding {};

void call(la::tensor_view<const float> q, la::tensor_view<float> out) {
  la::attend(q, q, q, la::full_causal(), my_encoding{}, out);
}
