// Law 1: while n <= min(window, distance_limit + 1), Λ-attention is full causal attention.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

namespace {

using namespace support;
using namespace lambda_attention;

class within_training_length : public law {};
INSTANTIATE_TEST_SUITE_P(laws, within_training_length, every_encoding_and_group(), name_of_case);

TEST_P(within_training_length, is_full_causal_attention) {
  for (const index_t n : {1, 2, 17, 75}) {
    SCOPED_TRACE("seed = n = " + std::to_string(n));
    generator random(static_cast<std::uint64_t>(n));
    const extents e = {n, 2, group()};
    const inputs<> in = random_inputs(random, e, layouts[n % 3]);
    with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
      const expected_rows expected(random, in.q, in.k, in.v, full_causal(), position);
      const lambda_shape tightest = {0, n, n - 1};
      const lambda_shape sinks = {3, n, n - 1};
      for (const lambda_shape& shape : {tightest, sinks, lm_infinite(0, n), lm_infinite(4, n + 5), sliding_window(n),
                                        streaming_llm(4, n), full_causal()}) {
        SCOPED_TRACE(to_string(shape));
        for (const isa_level isa : isa_levels()) {
          SCOPED_TRACE(name_of(isa));
          attention_options options;
          options.isa = isa;
          EXPECT_LE(expected.nmse(attend_sequence<float>(in, shape, position, options)), arithmetic_bound<float>());
          EXPECT_LE(expected.nmse(attend_sequence<double>(in, shape, position, options)), arithmetic_bound<double>());
          if (shape.window == unlimited) continue;
          for_each_storage([&](auto storage, const char* name) {
            using storage_type = decltype(storage);
            if (!has_own_kernels(isa, storage_type::format)) return;
            EXPECT_LE(expected.nmse(attend_stream<storage_type>(in, shape, position, {}, options)),
                      storage_bound<storage_type>(1, isa))
                << name;
          });
        }
      }
    });
  }
}

}  // namespace
