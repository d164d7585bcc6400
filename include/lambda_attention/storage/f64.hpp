// Rows of double; the kernels then compute in double.
#pragma once

#include <lambda_attention/storage.hpp>

#include <cstddef>
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Rows of double; the kernels then compute in double.
struct f64 {
  using compute_type = double;
  static constexpr row_format format = row_format::f64;
  static constexpr index_t row_bytes(index_t dim) { return dim * static_cast<index_t>(sizeof(double)); }

  static float encode(const double* row, index_t dim, void* stored) {
    std::memcpy(stored, row, static_cast<std::size_t>(row_bytes(dim)));
    return 1;
  }
  static void decode(const void* stored, float /*scale*/, index_t dim, double* row) {
    std::memcpy(row, stored, static_cast<std::size_t>(row_bytes(dim)));
  }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
