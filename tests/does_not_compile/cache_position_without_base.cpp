// expected: lambda_attention: a position encoding derives from position_encoding, see position.hpp
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_encoding {};

la::kv_cache<la::f32, my_encoding> cache(la::sliding_window(4), my_encoding{}, 1, 8, 8);
