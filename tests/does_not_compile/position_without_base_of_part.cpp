// expected: lambda_attention: attend_partial(): `position` must be a position encoding
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_encoding {};

void call(la::tensor_view<const float> q, const la::partial_result<float>& result) {
  la::attend_partial(q, q, q, la::full_causal(), my_encoding(), {0, 1}, result);
}
