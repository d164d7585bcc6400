// The contract of a key/value row format. Those of the library are in storage/; a new one is one more header there.
#pragma once

#include <lambda_attention/config.hpp>

#include <type_traits>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// How stored rows are read by the kernels: `custom` through the storage's decode(), the others in registers.
enum class row_format { f32, f64, f16, bf16, int8, custom };

// A storage is a type with
//
//     using compute_type = float;                         // or double: what the kernels compute in
//     static constexpr row_format format = row_format::custom;    // f64 is read as double, the others as float
//     static constexpr index_t row_bytes(index_t dim);    // of one stored row; dim numbers where format is not custom
//     static float encode(const compute_type* row, index_t dim, void* stored);
//     static void decode(const void* stored, float scale, index_t dim, compute_type* row);
//
// encode() writes a row and returns its scale, which the cache keeps beside the rows and hands to decode(); a storage
// without scales returns 1. Neither throws, and decode() may run in several threads at once. `stored` is aligned to 16 bytes
// and holds row_bytes(dim), zero at first. kv_cache::load() takes rows from a file, which another storage with rows as long
// may have written: decode() is then given any bytes. Of a format that is not custom the kernels know both, which are not
// called: they write and read its rows themselves, as the library's storages of that format do.

namespace detail {
// A storage that can be kept to the contract.
template <class Storage>
struct checked_storage {
  using compute_type = typename Storage::compute_type;
  static_assert(std::is_same_v<compute_type, float> || std::is_same_v<compute_type, double>,
                "lambda_attention: Storage::compute_type must be float or double");
  static_assert(
      Storage::format == row_format::custom ||
          (Storage::format == row_format::f64) == std::is_same_v<compute_type, double>,
      "lambda_attention: Storage::format must be custom, or f64 with compute_type double, or another with float");
};
}  // namespace detail

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
