// Law 4: only distances matter, wherever the stream began.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <stdexcept>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr index_t first_positions[] = {0,
                                       index_t{1} << 20,
                                       index_t{1} << 31,
                                       index_t{1} << 40,
                                       (index_t{1} << 53) + 1,  // no double
                                       index_t{1} << 62};

constexpr lambda_shape shapes[] = {lm_infinite(3, 24), {2, 24, 7}, streaming_llm(4, 20), sliding_window(19)};

class distance_only : public law {};
INSTANTIATE_TEST_SUITE_P(laws, distance_only, every_encoding_and_group(), name_of_case);

TEST_P(distance_only, matters) {
  constexpr int seed = 4;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {75, 1, group()};
  const inputs<> in = random_inputs(random, e, layout::padded);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      const expected_rows expected(random, in.q, in.k, in.v, shape, position);
      for (const index_t first_position : first_positions) {
        SCOPED_TRACE("first_position " + std::to_string(first_position));
        for (const isa_level isa : isa_levels()) {
          SCOPED_TRACE(name_of(isa));
          attention_options options, of_stream;
          options.isa = of_stream.isa = isa;
          options.first_position = first_position;
          if (has_own_kernels(isa, row_format::f32)) {
            EXPECT_LE(expected.nmse(attend_sequence<float>(in, shape, position, options)), arithmetic_bound<float>());
            EXPECT_LE(expected.nmse(attend_sequence<double>(in, shape, position, options)), arithmetic_bound<double>());
          }
          for_each_storage([&](auto storage, const char* name) {
            using storage_type = decltype(storage);
            if (!has_own_kernels(isa, storage_type::format)) return;
            EXPECT_LE(
                expected.nmse(attend_stream<storage_type>(in, shape, position, {16, 3, first_position}, of_stream)),
                storage_bound<storage_type>(1, isa))
                << name;
          });
        }
      }
    }
  });
}

// The last position that is taken is 2^63 - 2: one past it, the number of positions, still fits.
TEST(positions, past_int64_are_refused) {
  generator random(5);
  const inputs<> in = random_inputs(random, {4, 1, 1});
  const rope position(12);
  const lambda_shape shape = lm_infinite(1, 2);
  tensor<float> out = output_for<float>(in);
  attention_options options;

  options.first_position = unlimited - 4;
  EXPECT_NO_THROW(attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), options));
  for (const index_t too_far : {unlimited - 3, unlimited}) {
    options.first_position = too_far;
    EXPECT_THROW(attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), options),
                 std::invalid_argument);
  }

  auto cache = cache_for<f32>(in, shape, position, {4, 0, unlimited - 4});
  EXPECT_NO_THROW(attend_part(in, 0, 3, cache, out));
  EXPECT_THROW(attend_part(in, 0, 2, cache, out), std::invalid_argument);
  EXPECT_NO_THROW(attend_part(in, 3, 1, cache, out));
  EXPECT_THROW(attend_part(in, 0, 1, cache, out), std::invalid_argument);
  EXPECT_EQ(cache.num_tokens(), 4);
}

}  // namespace
