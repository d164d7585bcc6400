// Weights of keys == what values of one in one place, and zeros elsewhere, are averaged to.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/reversed_executor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

class weights_law : public law {};
INSTANTIATE_TEST_SUITE_P(laws, weights_law,
                         testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 4)), name_of_case);

constexpr lambda_shape shapes[] = {lm_infinite(3, 24),   {2, 40, 7},   {5, 1, 0},  {6, 0, 3},
                                   streaming_llm(4, 30), {200, 10, 5}, {0, 90, 20}};

// Value j of every head has a one at place j.
tensor<float> unit_values(index_t tokens, index_t heads) {
  tensor<float> values(tokens, heads, tokens);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < tokens; ++d) values.view().row(t, h)[d] = t == d ? 1.0f : 0.0f;
  return values;
}

// The weights of one query and head, in their columns.
std::vector<double> in_columns(const double* by_key, const lambda_shape& shape, index_t query, index_t num_columns) {
  std::vector<double> columns(static_cast<std::size_t>(num_columns));
  const index_range sinks = shape.sink_keys(query), window = shape.window_keys(query);
  for (index_t key = sinks.first; key < sinks.last; ++key) columns[static_cast<std::size_t>(key)] = by_key[key];
  for (index_t key = window.first; key < window.last; ++key)
    columns[static_cast<std::size_t>(shape.num_sinks + key - window.first)] = by_key[key];
  return columns;
}

template <class Storage>
void of_a_stream(encoding encoded, index_t group, row_format format, index_t num_queries) {
  constexpr int seed = 29;
  SCOPED_TRACE("seed " + std::to_string(seed) + ", queries " + std::to_string(num_queries));
  generator random(seed);
  const extents e = {100, 2, group, 32, 100};
  inputs<float> in = random_inputs<float>(random, e);
  in.v = unit_values(e.tokens, e.kv_heads);
  const std::vector<float> sink_logits(static_cast<std::size_t>(e.heads()), 0.5f);
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      attention_options options;
      options.sink_logits = {sink_logits.data(), e.heads()};
      const tensor<double> expected = attend_sequence<double>(in, shape, position, options);
      const index_t num_columns = std::min(shape.num_sinks, e.tokens) + shape.window + 2;
      for (const isa_level isa : isa_levels()) {
        if (!has_own_kernels(isa, format)) continue;
        SCOPED_TRACE(name_of(isa));
        error_sum error;
        for (const index_t last : {num_queries, index_t{37}, e.tokens}) {
          const index_t first = last - num_queries;
          auto cache = cache_for<Storage>(in, shape, position, {128});
          append(in.k.view().slice(0, first), in.v.view().slice(0, first), cache);
          tensor<float> weights(num_queries, e.heads(), num_columns, layout::padded);
          tensor<float> out(num_queries, e.heads(), e.v_head_dim);
          options.isa = isa;
          options.weights = weights.view();
          attend(in.q.view().slice(first, num_queries), in.k.view().slice(first, num_queries),
                 in.v.view().slice(first, num_queries), cache, out.view(), options);
          for (index_t t = 0; t < num_queries; ++t)
            for (index_t h = 0; h < e.heads(); ++h) {
              const std::vector<double> right =
                  in_columns(expected.view().row(first + t, h), shape, first + t, num_columns);
              for (index_t c = 0; c < num_columns; ++c)
                error.add(weights.view().row(t, h)[c], right[static_cast<std::size_t>(c)]);
            }
        }
        EXPECT_LE(error.nmse(), storage_bound<Storage>(1, isa));
      }
    }
  });
}

TEST_P(weights_law, are_the_shares_of_the_keys) {
  of_a_stream<f32>(encoding_under_test(), group(), row_format::f32, 1);
  of_a_stream<f32>(encoding_under_test(), group(), row_format::f32, 4);
  of_a_stream<bf16>(encoding_under_test(), group(), row_format::bf16, 4);
  of_a_stream<int8>(encoding_under_test(), group(), row_format::int8, 3);
}

// Of more keys than one part has, shared by workers: values times their weights are the output.
TEST_P(weights_law, times_values_are_the_output) {
  constexpr int seed = 31;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {3200, 1, group(), 16, 16};
  const inputs<float> in = random_inputs<float>(random, e);
  const lambda_shape shape = {3, 3000, 1000};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    constexpr index_t num_queries = 3;
    const index_t first = e.tokens - num_queries;
    auto cache = cache_for<f32>(in, shape, position);
    append(in.k.view(), in.v.view(), cache);
    tensor<float> weights(num_queries, e.heads(), 3003), out(num_queries, e.heads(), 16), alone = out, mean = out;
    attention_options options;
    attend(in.q.view().slice(first, num_queries), cache, alone.view(), options);
    options.weights = weights.view();
    attend(in.q.view().slice(first, num_queries), cache, out.view(), options, reversed_executor{});
    EXPECT_TRUE(same_bits(out.view(), alone.view())) << "weights change nothing";
    for (index_t t = 0; t < num_queries; ++t)
      for (index_t h = 0; h < e.heads(); ++h)
        for (index_t d = 0; d < 16; ++d) {
          double sum = 0;
          for (index_t c = 0; c < 3003; ++c) {
            const index_t key = c < 3 ? c : first + t - 3000 + 1 + c - 3;
            sum += static_cast<double>(weights.view().row(t, h)[c] * in.v.view().row(key, 0)[d]);
          }
          mean.view().row(t, h)[d] = static_cast<float>(sum);
        }
    EXPECT_LE(nmse(mean.view(), out.view()), between_two(arithmetic_bound<float>()));
  });
}

// Of runs too.
TEST_P(weights_law, of_runs_are_those_of_a_cache) {
  constexpr int seed = 37;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {100, 1, group(), 32, 16};
  const inputs<float> in = random_inputs<float>(random, e);
  const lambda_shape shape = lm_infinite(3, 24);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    auto cache = cache_for<f32>(in, shape, position);
    append(in.k.view(), in.v.view(), cache);
    tensor<float> of_cache(2, e.heads(), 27), of_runs = of_cache, out(2, e.heads(), 16);
    attention_options options;
    options.weights = of_cache.view();
    attend(in.q.view().slice(98, 2), cache, out.view(), options);
    options.weights = of_runs.view();
    const key_run run{0, in.k.view(), in.v.view()};
    attend(query_run{98, in.q.view().slice(98, 2)}, &run, 1, shape, position, out.view(), options);
    EXPECT_LE(nmse(of_runs.view(), of_cache.view()), between_two(arithmetic_bound<float>()));
  });
}

}  // namespace
