// No position encoding.
#pragma once

#include <lambda_attention/position.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// score = <q, k>, whatever the distance.
class none : public position_encoding {
 public:
  position_data data() const { return {}; }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
