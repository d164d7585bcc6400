// What every law is tried on: encodings, storages, groups, instruction sets.
#pragma once

#include <lambda_attention/isa.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/t5_bias.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <support/random_tensor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

namespace support {

enum class encoding { rope_half_split, rope_interleaved, rope_partial, rope_factor, alibi, t5_bias, none };
inline constexpr encoding encodings[] = {
    encoding::rope_half_split, encoding::rope_interleaved, encoding::rope_partial, encoding::rope_factor,
    encoding::alibi,           encoding::t5_bias,          encoding::none};

inline const char* name_of(encoding e) {
  switch (e) {
    case encoding::rope_half_split:
      return "rope_half_split";
    case encoding::rope_interleaved:
      return "rope_interleaved";
    case encoding::rope_partial:
      return "rope_partial";
    case encoding::rope_factor:
      return "rope_factor";
    case encoding::alibi:
      return "alibi";
    case encoding::t5_bias:
      return "t5_bias";
    case encoding::none:
      return "none";
  }
  return "?";
}

inline void PrintTo(encoding e, std::ostream* out) { *out << name_of(e); }

/// Calls use(position) with the encoding, made for that many heads and that head_dim (rope: at least 2).
template <class Use>
void with_encoding(encoding e, index_t num_heads, index_t head_dim, Use&& use) {
  using namespace lambda_attention;
  rope_options options;
  options.rotary_dim = head_dim / 2 * 2;
  switch (e) {
    case encoding::rope_half_split:
      return use(rope(head_dim, 10000, options));
    case encoding::rope_interleaved:
      options.layout = pair_layout::interleaved;
      return use(rope(head_dim, 10000, options));
    case encoding::rope_partial:
      options.rotary_dim = std::max<index_t>(2, head_dim / 4 * 2);
      return use(rope(head_dim, 500000, options));
    case encoding::rope_factor:
      options.factor = 1.125;
      return use(rope(head_dim, 10000, options));
    case encoding::alibi:
      return use(lambda_attention::alibi(num_heads));
    case encoding::t5_bias: {
      constexpr index_t num_buckets = 8, max_distance = 20;
      generator random(7);
      tensor<float> weights = random_tensor<float>(random, num_buckets, 1, num_heads);
      return use(lambda_attention::t5_bias(weights.view().data, num_buckets, num_heads, max_distance));
    }
    case encoding::none:
      return use(lambda_attention::none());
  }
}

inline std::string to_string(const lambda_attention::lambda_shape& shape) {
  using lambda_attention::unlimited;
  const auto number = [](index_t n) { return n == unlimited ? "unlimited" : std::to_string(n); };
  return "num_sinks " + number(shape.num_sinks) + ", window " + number(shape.window) + ", distance_limit " +
         number(shape.distance_limit) +
         (shape.sinks_at == lambda_attention::sink_distance::cache_slot ? ", sinks at cache slots" : "");
}

/// Calls use(storage, its name) with every storage.
template <class Use>
void for_each_storage(Use&& use) {
  use(lambda_attention::f64{}, "f64");
  use(lambda_attention::f32{}, "f32");
  use(lambda_attention::f16{}, "f16");
  use(lambda_attention::bf16{}, "bf16");
  use(lambda_attention::int8{}, "int8");
}

/// The instruction sets that this machine has. Those that it lacks are told of, once.
inline const std::vector<lambda_attention::isa_level>& isa_levels() {
  using lambda_attention::isa_level;
  static const std::vector<isa_level> levels = [] {
    std::vector<isa_level> present;
    for (const isa_level level : {isa_level::baseline, isa_level::avx2, isa_level::avx512, isa_level::avx512_vnni,
                                  isa_level::avx512_bf16, isa_level::amx_bf16}) {
      if (level <= lambda_attention::highest_isa()) {
        present.push_back(level);
      } else {
        std::printf("skipped: this machine has no %s\n", lambda_attention::name_of(level));
      }
    }
    return present;
  }();
  return levels;
}

/// Whether an instruction set has kernels for rows of a format that the one below it has not.
constexpr bool has_own_kernels(lambda_attention::isa_level isa, lambda_attention::row_format format) {
  using lambda_attention::isa_level;
  using lambda_attention::row_format;
  if (isa <= isa_level::avx512) return true;
  return format == (isa == isa_level::avx512_vnni ? row_format::int8 : row_format::bf16);
}

/// A suite of laws: TEST_P(suite, law) runs for every encoding and every number of query heads to a KV head.
class law : public testing::TestWithParam<std::tuple<encoding, index_t>> {
 protected:
  static encoding encoding_under_test() { return std::get<0>(GetParam()); }
  static index_t group() { return std::get<1>(GetParam()); }
};

inline auto every_group() { return testing::Values<index_t>(1, 3, 4, 8); }
inline auto every_encoding_and_group() { return testing::Combine(testing::ValuesIn(encodings), every_group()); }
inline std::string name_of_case(const testing::TestParamInfo<law::ParamType>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_group_" + std::to_string(std::get<1>(info.param));
}

}  // namespace support
