// expected: lambda_attention: attend(): `out` must be a view of elements that are not const
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

void call(la::tensor_view<const float> q) {
  const la::key_run run{0, q, q};
  la::attend(la::query_run{0, q}, &run, 1, la::full_causal(), la::none(), q);
}
