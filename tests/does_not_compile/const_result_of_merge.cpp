// expected: lambda_attention: merge(): `result` must have views of elements that are not const
#include <lambda_attention/partial.hpp>

void call(const lambda_attention::partial_result<float>& part,
          const lambda_attention::partial_result<const float>& result) {
  lambda_attention::merge(part, part, result);
}
