// The contract of a key/value row format. Those of the library are in storage/; a new one is one more header there.
#pragma once

#include <lambda_attention/config.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// How stored rows are read by the kernels: `custom` through the storage's decode(), the others in registers.
enum class row_format { f32, f64, f16, bf16, int8, custom };

// A storage is a type with
//
//     using compute_type = float;                         // or double: what the kernels compute in
//     static constexpr row_format format = row_format::custom;    // f64 is read as double, the others as float
//     static constexpr index_t row_bytes(index_t dim);    // of one stored row
//     static float encode(const compute_type* row, index_t dim, void* stored);
//     static void decode(const void* stored, float scale, index_t dim, compute_type* row);
//
// encode() writes a row and returns its scale, which the cache keeps beside the rows and hands to decode(); a storage
// without scales returns 1. Neither throws. `stored` is aligned to 16 bytes and holds row_bytes(dim), zero at first.

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
