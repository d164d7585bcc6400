// Rows of bfloat16.
#pragma once

#include <lambda_attention/element.hpp>
#include <lambda_attention/storage.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// The upper half of a float, rounded to nearest even. Relative error of an element at most 2^-8, for magnitudes from
/// 2^-126 on; the largest floats, from 3.39e38 on, may become infinite.
struct bf16 {
  using compute_type = float;
  static constexpr row_format format = row_format::bf16;
  static constexpr index_t row_bytes(index_t dim) { return 2 * dim; }

  static float encode(const float* row, index_t dim, void* stored) {
    std::uint16_t* const bits = static_cast<std::uint16_t*>(stored);
    for (index_t d = 0; d < dim; ++d) bits[d] = detail::bfloat16_bits(row[d]);
    return 1;
  }
  static void decode(const void* stored, float /*scale*/, index_t dim, float* row) {
    const std::uint16_t* const bits = static_cast<const std::uint16_t*>(stored);
    for (index_t d = 0; d < dim; ++d) row[d] = detail::float_of_bfloat16(bits[d]);
  }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
