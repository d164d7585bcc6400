// expected: lambda_attention: attend_partial(): `result` must have views of elements that are not const
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

void call(la::tensor_view<const float> q, const la::kv_cache<la::f32, la::none>& cache,
          const la::partial_result<float, const float>& result) {
  la::attend_partial(q, cache, {0, 1}, result);
}
