// expected: lambda_attention: an element is aligned as the kind that its element_traits name
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct float_of_bytes {
  unsigned char bytes[4];
};
template <>
struct lambda_attention::element_traits<float_of_bytes> {
  static constexpr auto kind = element_kind::f32;
};

void call(la::tensor_view<const float_of_bytes> q, la::tensor_view<float> out) {
  la::attend(q, q, q, la::full_causal(), la::none(), out);
}
