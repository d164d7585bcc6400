// expected: `position` must be a position encoding
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_encoding {};

void call(la::tensor_view<const float> q, la::tensor_view<float> out) {
  const la::key_run run{0, q, q};
  la::attend(la::query_run{0, q}, &run, 1, la::full_causal(), my_encoding(), out);
}
