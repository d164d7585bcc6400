// The error bounds on inputs as models make them.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr int seed = 11;
constexpr lambda_shape shape = lm_infinite(4, 64);
constexpr extents sizes = {200, 1, 2, 64, 64};

struct model_inputs {
  std::string name;
  inputs<> in;
  // The logit of a key that has much of the weight, times that weight: as much does a relative error of it, where one channel
  // makes it, move the output.
  double weighted_logit = 0;
};

model_inputs normal(double sigma) {
  generator random(seed);
  return {"sigma " + std::to_string(sigma), random_inputs(random, sizes, layout::token_major, sigma)};
}

template <class Visit>
void for_each_row(const tensor_view<float>& view, Visit&& visit) {
  for (index_t t = 0; t < view.tokens; ++t)
    for (index_t h = 0; h < view.heads; ++h) visit(t, view.row(t, h));
}

// About half of the weight goes to token 0, whose value is small: where a model looks when it looks nowhere.
model_inputs one_sink() {
  constexpr index_t channel = 31;  // of rope's slowest pair
  model_inputs m = normal(1);
  m.name = "one sink";
  m.weighted_logit = 4.7 / 2;
  for_each_row(m.in.q.view(), [&](index_t, float* q) { q[channel] = 4; });
  for_each_row(m.in.k.view(), [&](index_t t, float* k) { k[channel] = t == 0 ? 2 * 4.7f : 0; });  // e^4.7 = 64 e^0.5
  for_each_row(m.in.v.view(), [&](index_t t, float* v) {
    for (index_t d = 0; t == 0 && d < sizes.v_head_dim; ++d) v[d] *= 0.01f;
  });
  return m;
}

// Two channels of every key are far off zero.
model_inputs huge_channels() {
  model_inputs m = normal(1);
  m.name = "huge channels";
  for_each_row(m.in.k.view(), [&](index_t, float* k) {
    k[5] += 10;
    k[40] -= 10;
  });
  return m;
}

// The logit of each key is 2 above that of the one before, on average: the largest is always the newest.
model_inputs ascending() {
  model_inputs m = normal(1);
  m.name = "ascending";
  for_each_row(m.in.q.view(), [&](index_t, float* q) {
    for (index_t d = 0; d < sizes.head_dim; ++d) q[d] += d % 3 == 0 ? 1.0f : -1.0f;
  });
  for_each_row(m.in.k.view(), [&](index_t t, float* k) {
    for (index_t d = 0; d < sizes.head_dim; ++d) k[d] += (d % 3 == 0 ? 0.25f : -0.25f) * static_cast<float>(t);
  });
  return m;
}

// The same numbers in bfloat16.
inputs<bfloat16> narrowed(const inputs<>& in) {
  const auto narrow = [](const tensor<float>& from) {
    tensor<bfloat16> to(from.view().tokens, from.view().heads, from.view().dim);
    for (index_t t = 0; t < from.view().tokens; ++t)
      for (index_t h = 0; h < from.view().heads; ++h)
        for (index_t d = 0; d < from.view().dim; ++d) to.view().row(t, h)[d] = bfloat16(from.view().row(t, h)[d]);
    return to;
  };
  return {narrow(in.q), narrow(in.k), narrow(in.v)};
}

TEST(model_inputs, hold_the_bounds) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  std::vector<model_inputs> cases = {one_sink(), huge_channels(), ascending()};
  for (const double sigma : {1, 3, 10, 30, 100}) cases.push_back(normal(sigma));
  for (const encoding e : {encoding::none, encoding::rope_half_split}) {
    with_encoding(e, sizes.heads(), sizes.head_dim, [&](const auto& position) {
      for (const model_inputs& m : cases) {
        const inputs<>& in = m.in;
        const double sigma = sigma_of(random, in.q, in.k, shape, position, 1 / std::sqrt(64), 4000);
        SCOPED_TRACE(m.name + ", " + name_of(e) + ", sigma " + std::to_string(sigma));
        const expected_rows expected(random, in.q, in.k, in.v, shape, position);
        const inputs<bfloat16> narrow = narrowed(in);
        const expected_rows expected_narrow(random, narrow.q, narrow.k, narrow.v, shape, position);
        for (const isa_level isa : isa_levels()) {
          SCOPED_TRACE(name_of(isa));
          attention_options options;
          options.isa = isa;
          EXPECT_LE(expected.nmse(attend_sequence<float>(in, shape, position, options)),
                    arithmetic_bound<float>(sigma));
          EXPECT_LE(expected.nmse(attend_sequence<double>(in, shape, position, options)), arithmetic_bound<double>());
          EXPECT_LE(expected_narrow.nmse(attend_sequence<float>(narrow, shape, position, options)),
                    tensor_bound<float>(row_format::bf16, isa, std::hypot(sigma, m.weighted_logit)));
          for_each_storage([&](auto storage, const char* name) {
            using storage_type = decltype(storage);
            for (const index_t max_append : {1, 64}) {
              EXPECT_LE(expected.nmse(attend_stream<storage_type>(in, shape, position, {max_append}, options)),
                        storage_bound<storage_type>(sigma, isa))
                  << name;
            }
          });
        }
      }
    });
  }
}

// Where every value is 1, so is the output, however the weights were rounded.
TEST(model_inputs, have_weights_that_add_up_to_one) {
  for (const double sigma : {0.1, 1.0, 10.0}) {
    inputs<> in = normal(sigma).in;
    for_each_row(in.v.view(), [&](index_t, float* v) { std::fill_n(v, sizes.v_head_dim, 1.0f); });
    tensor<float> ones = output_for<float>(in);
    for_each_element(ones.view(), [](float& x) { x = 1; });
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa) + std::string(", sigma ") + std::to_string(sigma));
      attention_options options;
      options.isa = isa;
      const auto error = [&](const auto& out) { return nmse(out.view(), ones.view()); };
      const lambda_attention::none position;
      EXPECT_LE(error(attend_sequence<float>(in, shape, position, options)), arithmetic_bound<float>());
      EXPECT_LE(error(attend_sequence<float>(narrowed(in), shape, position, options)), arithmetic_bound<float>());
      for_each_storage([&](auto storage, const char* name) {
        for (const index_t max_append : {1, 64}) {
          EXPECT_LE(error(attend_stream<decltype(storage)>(in, shape, position, {max_append}, options)),
                    arithmetic_bound<float>())
              << name;
        }
      });
    }
  }
}

}  // namespace
