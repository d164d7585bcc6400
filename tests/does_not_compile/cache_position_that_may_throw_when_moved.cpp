// expected: lambda_attention: a position encoding that a cache keeps is moved with it: it must have a move constructor and a move assignment
#include <lambda_attention/lambda_attention.hpp>

namespace la = lambda_attention;

struct my_encoding : la::position_encoding {
  my_encoding() = default;
  my_encoding(const my_encoding&) {}
  my_encoding& operator=(const my_encoding&) { return *this; }
  la::position_data data() const { return {}; }
};

la::kv_cache<la::f32, my_encoding> cache(la::sliding_window(4), my_encoding(), 1, 8, 8);
