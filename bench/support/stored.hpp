// The storages of a kv_cache, as benches name them and bound their errors.
#pragma once

#include "check.hpp"

#include <lambda_attention/isa.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <type_traits>

namespace bench {

template <class Storage>
constexpr const char* storage_name() {
  if (std::is_same_v<Storage, lambda_attention::f16>) return "f16";
  if (std::is_same_v<Storage, lambda_attention::bf16>) return "bf16";
  if (std::is_same_v<Storage, lambda_attention::int8>) return "int8";
  return "f32";
}

/// 4 u^2: keys and values each move the output by the mean square rounding u^2 of a stored row (of keys: times the variance
/// of the logits, which is 1 here); and twice that. Pairs, with AMX those of 5 or more queries of a KV head, round weights and
/// queries too.
template <class Storage>
double stored_nmse_bound() {
  const bool in_pairs = lambda_attention::isa() >= lambda_attention::isa_level::avx512_bf16;
  if (std::is_same_v<Storage, lambda_attention::f16>) return 4 * 5e-8;
  if (std::is_same_v<Storage, lambda_attention::bf16>) return (in_pairs ? 8 : 4) * 2.5e-6;
  if (std::is_same_v<Storage, lambda_attention::int8>) return 4 * 4e-5;
  return float_nmse_bound;
}

}  // namespace bench
