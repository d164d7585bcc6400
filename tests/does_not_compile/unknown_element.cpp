// expected: lambda_attention: tensors hold float, double, half, bfloat16, or a type with an element_traits specialisation (eigen.hpp has those of Eigen::half and Eigen::bfloat16)
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

void call(la::tensor_view<const float> q, la::tensor_view<const int> k, la::tensor_view<float> out) {
  la::attend(q, k, q, la::full_causal(), la::none(), out);
}
