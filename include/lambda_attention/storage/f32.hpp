// Rows of float, as they are.
#pragma once

#include <lambda_attention/storage.hpp>

#include <cstddef>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Rows of float, as they are.
struct f32 {
  using compute_type = float;
  static constexpr row_format format = row_format::f32;
  static constexpr index_t row_bytes(index_t dim) { return dim * static_cast<index_t>(sizeof(float)); }

  static float encode(const float* row, index_t dim, void* stored) {
    std::memcpy(stored, row, static_cast<std::size_t>(row_bytes(dim)));
    return 1;
  }
  static void decode(const void* stored, float /*scale*/, index_t dim, float* row) {
    std::memcpy(row, stored, static_cast<std::size_t>(row_bytes(dim)));
  }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
