// Law 2: past the training length attend() is the formula, however n, num_sinks, window and distance_limit lie to each
// other.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// Zero, one, equal, one off, odd.
std::vector<lambda_shape> shapes_around(index_t n) {
  std::vector<lambda_shape> shapes;
  for (const index_t num_sinks : {index_t{0}, index_t{1}, index_t{5}, n, n + 3}) {
    for (const index_t window : {index_t{0}, index_t{1}, index_t{2}, index_t{17}, n - 1, n, n + 1}) {
      std::set<index_t> limits = {0, 1, 9, window, window + 1, unlimited};
      if (window >= 1) limits.insert(window - 1);
      if (window >= 2) limits.insert(window - 2);
      for (const index_t limit : limits) shapes.push_back({num_sinks, window, limit});
      shapes.push_back(streaming_llm(num_sinks, window));
    }
  }
  return shapes;
}

class beyond : public law {};
INSTANTIATE_TEST_SUITE_P(laws, beyond, every_encoding_and_group(), name_of_case);

TEST_P(beyond, is_the_formula) {
  constexpr int seed = 2;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {75, 1, group()};  // more than the queries of a tile
  const inputs<> in = random_inputs(random, e);
  std::size_t turn = 0;  // what is dear takes turns
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes_around(e.tokens)) {
      SCOPED_TRACE(to_string(shape));
      const expected_rows expected(random, in.q, in.k, in.v, shape, position);
      attention_options options;
      for (const isa_level isa : isa_levels()) {
        if (!has_own_kernels(isa, row_format::f32)) continue;
        options.isa = isa;
        EXPECT_LE(expected.nmse(attend_sequence<float>(in, shape, position, options)), arithmetic_bound<float>())
            << name_of(isa);
      }
      options.isa = isa_levels()[turn++ % isa_levels().size()];
      SCOPED_TRACE(name_of(options.isa));
      EXPECT_LE(expected.nmse(attend_sequence<double>(in, shape, position, options)), arithmetic_bound<double>());
      for_each_storage([&](auto storage, const char* name) {
        using storage_type = decltype(storage);
        EXPECT_LE(expected.nmse(attend_stream<storage_type>(in, shape, position, {}, options)),
                  storage_bound<storage_type>(1, options.isa))
            << name;
      });
    }
  });
}

// The bounds are of use only while they are far below what a mask that is one off gives.
TEST_P(beyond, would_show_a_shape_that_is_one_off) {
  generator random(3);
  const extents e = {75, 1, group()};
  const inputs<> in = random_inputs(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    const lambda_shape right = {5, 17, 3};
    const expected_rows expected(random, in.q, in.k, in.v, right, position);
    for (const lambda_shape& wrong :
         {lambda_shape{4, 17, 3}, {6, 17, 3}, {5, 16, 3}, {5, 18, 3}, {5, 17, 2}, {5, 17, 4}}) {
      const bool other_mask = wrong.distance_limit == right.distance_limit;
      if (!other_mask && encoding_under_test() == encoding::none) continue;
      // A limit that is one off changes little where ALiBi's slope is small.
      EXPECT_GE(expected.nmse(attend_sequence<double>(in, wrong, position)),
                other_mask ? 10 * storage_bound<int8>() : 1000 * arithmetic_bound<float>())
          << to_string(wrong);
    }
  });
}

}  // namespace
