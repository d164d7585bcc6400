// expected: lambda_attention: Storage::compute_type must be float or double
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_storage : la::f16 {
  using compute_type = la::half;
};

la::kv_cache<my_storage, la::none> cache(la::sliding_window(4), la::none(), 1, 8, 8);
