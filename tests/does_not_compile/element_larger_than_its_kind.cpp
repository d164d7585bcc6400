// expected: lambda_attention: an element is as large as the kind that its element_traits name
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct wide_half {
  float number;
};
template <>
struct lambda_attention::element_traits<wide_half> {
  static constexpr auto kind = element_kind::f16;
};

void call(la::tensor_view<const wide_half> q, la::tensor_view<float> out) {
  la::attend(q, q, q, la::full_causal(), la::none(), out);
}
