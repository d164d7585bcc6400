// How much a shape lets queries see.
#pragma once

#include <lambda_attention/lambda_shape.hpp>

namespace bench {

using lambda_attention::index_t;

inline index_t visible_keys(const lambda_attention::lambda_shape& shape, index_t query) {
  return shape.sink_keys(query).size() + shape.window_keys(query).size();
}

/// (query, key) pairs of a sequence, over all query heads.
inline double visible_pairs(const lambda_attention::lambda_shape& shape, index_t tokens, index_t num_heads) {
  index_t pairs = 0;
  for (index_t i = 0; i < tokens; ++i) pairs += visible_keys(shape, i);
  return static_cast<double>(pairs) * static_cast<double>(num_heads);
}

}  // namespace bench
