// expected: lambda_attention: Storage::format must be custom, or f64 with compute_type double
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_storage : la::f64 {
  static constexpr la::row_format format = la::row_format::f32;
};

la::middle_store<my_storage, la::none> store(la::sliding_window(4), la::none(), 1, 8, 8);
