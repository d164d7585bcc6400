// expected: lambda_attention: attend_partial(): `result` must have views of elements that are not const
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

void call(la::tensor_view<const float> q, la::tensor_view<float> lse) {
  const la::key_run run{0, q, q};
  la::attend_partial(la::query_run{0, q}, &run, 1, la::full_causal(), la::none(), {0, 1}, la::partial_result{q, lse});
}
