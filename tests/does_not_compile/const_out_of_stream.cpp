// expected: lambda_attention: attend(): `out` must be a view of elements that are not const
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

void call(la::tensor_view<const float> q, la::kv_cache<la::f32, la::none>& cache, la::tensor_view<const float> out) {
  la::attend(q, q, q, cache, out);
}
