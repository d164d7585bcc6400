// Law 5: what no query sees changes nothing, and what lies beside the tensors is not touched.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/guarded.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()};

template <class T>
void fill(const tensor_view<T>& rows, float number) {
  for_each_element(rows, [&](T& x) { x = element<T>(number); });
}

constexpr index_t num_sinks = 5;

// The poison is in all rows but those of the sinks, which are all that is seen.
template <class Real, class T, class Position>
void poison_unseen_rows(const inputs<T>& clean, const lambda_shape& shape, const Position& position,
                        const attention_options& options) {
  const tensor<Real> out = attend_sequence<Real>(clean, shape, position, options);
  for (const float p : poisons) {
    inputs<T> poisoned = clean;
    fill(poisoned.k.view().slice(num_sinks, clean.k.view().tokens - num_sinks), p);
    fill(poisoned.v.view().slice(num_sinks, clean.v.view().tokens - num_sinks), p);
    EXPECT_TRUE(same_bits(attend_sequence<Real>(poisoned, shape, position, options).view(), out.view()));
    for_each_storage([&](auto storage, const char* name) {
      using storage_type = decltype(storage);
      EXPECT_TRUE(same_bits(attend_stream<storage_type>(poisoned, shape, position, {16}, options).view(),
                            attend_stream<storage_type>(clean, shape, position, {16}, options).view()))
          << name;
    });
  }
}

class poison : public law {};
INSTANTIATE_TEST_SUITE_P(laws, poison, testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 3)),
                         name_of_case);

// Without a window, nobody sees the tokens after the sinks.
TEST_P(poison, in_rows_that_nobody_sees_leaves_every_bit) {
  constexpr int seed = 5;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {75, 2, group()};
  const lambda_shape shape = {num_sinks, 0, 9};
  const inputs<> clean = random_inputs(random, e, layout::padded);
  const extents whole_matrices = {75, 2, group(), 32, 64};
  const inputs<bfloat16> clean_bf16 = random_inputs<bfloat16>(random, e, layout::padded);
  const inputs<bfloat16> clean_matrices = random_inputs<bfloat16>(random, whole_matrices, layout::padded);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa));
      attention_options options;
      options.isa = isa;
      if (has_own_kernels(isa, row_format::bf16)) poison_unseen_rows<float>(clean_bf16, shape, position, options);
      if (!has_own_kernels(isa, row_format::f32)) continue;
      poison_unseen_rows<float>(clean, shape, position, options);
      poison_unseen_rows<double>(clean, shape, position, options);
    }
  });
  with_encoding(encoding_under_test(), e.heads(), whole_matrices.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa));
      attention_options options;
      options.isa = isa;
      if (has_own_kernels(isa, row_format::bf16)) poison_unseen_rows<float>(clean_matrices, shape, position, options);
    }
  });
}

constexpr index_t num_tokens = 150;

// The stream in calls of `step` tokens.
template <class Storage, class Position>
auto in_steps(const inputs<>& in, const lambda_shape& shape, const Position& position, index_t step,
              const attention_options& options) {
  auto out = output_for<typename Storage::compute_type>(in);
  auto cache = cache_for<Storage>(in, shape, position, {step});
  for (index_t i = 0; i < num_tokens; i += step)
    attend_part(in, i, std::min(step, num_tokens - i), cache, out, options);
  return out;
}

template <class T, class Position>
void poison_a_sequence(generator& random, const extents& e, const Position& position, isa_level isa) {
  // Tiles begin at 128. Their oldest key is odd, and shares its words with the poisoned one where pairs are multiplied.
  constexpr index_t window = 24, healthy = 128, poisoned_token = healthy - window;
  attention_options options;
  options.isa = isa;
  const inputs<T> clean = random_inputs<T>(random, e);
  const auto expected = attend_sequence<float>(clean, lm_infinite(3, window), position, options);
  for (const float p : poisons) {
    inputs<T> poisoned = clean;
    fill(poisoned.k.view().slice(poisoned_token, 1), p);
    fill(poisoned.v.view().slice(poisoned_token, 1), p);
    const auto actual = attend_sequence<float>(poisoned, lm_infinite(3, window), position, options);
    EXPECT_FALSE(std::isfinite(*actual.view().row(poisoned_token, 0))) << "the poison is none";
    EXPECT_TRUE(same_bits(actual.view().slice(healthy, num_tokens - healthy),
                          expected.view().slice(healthy, num_tokens - healthy)));
  }
}

// In one call on a whole sequence it may reach the queries of its tiles, and none after them.
TEST_P(poison, leaves_a_sequence_with_the_window) {
  constexpr int seed = 8;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {num_tokens, 1, group()};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(name_of(isa));
      poison_a_sequence<float>(random, e, position, isa);
      poison_a_sequence<bfloat16>(random, e, position, isa);
    }
  });
}

// A token of NaNs is as good as any other once it has left the window, while its row is still in the ring and later.
TEST_P(poison, leaves_a_stream_with_the_window) {
  constexpr int seed = 6;
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr index_t window = 24,
                    poisoned_token = 80 - window;  // the one before the oldest that a step of 20 sees; even
  generator random(seed);
  const extents e = {num_tokens, 1, group()};
  const inputs<> clean = random_inputs(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : {lm_infinite(3, window), lambda_shape{2, window, 7}, streaming_llm(4, window)}) {
      SCOPED_TRACE(to_string(shape));
      for (const isa_level isa : isa_levels()) {
        attention_options options;
        options.isa = isa;
        for (const float p : poisons) {
          inputs<> poisoned = clean;
          fill(poisoned.q.view().slice(poisoned_token, 1), p);
          fill(poisoned.k.view().slice(poisoned_token, 1), p);
          fill(poisoned.v.view().slice(poisoned_token, 1), p);
          for_each_storage([&](auto storage, const char* name) {
            using storage_type = decltype(storage);
            if (!has_own_kernels(isa, storage_type::format)) return;
            for (const index_t step : {1, 5, 20}) {
              SCOPED_TRACE(std::string(name) + " " + name_of(isa) + ", steps of " + std::to_string(step));
              const auto expected = in_steps<storage_type>(clean, shape, position, step, options);
              const auto actual = in_steps<storage_type>(poisoned, shape, position, step, options);
              EXPECT_FALSE(std::isfinite(*actual.view().row(poisoned_token, 0))) << "the poison is none";
              // The first step whose queries are all past it.
              const index_t healthy = (poisoned_token + window + step - 1) / step * step;
              EXPECT_TRUE(same_bits(actual.view().slice(healthy, num_tokens - healthy),
                                    expected.view().slice(healthy, num_tokens - healthy)));
            }
          });
        }
      }
    }
  });
}

// One call on tensors at the edge of accessible memory gives what it gives elsewhere, and faults nowhere.
template <class T, class Position>
void attend_at_the_edge(const inputs<T>& in, const Position& position, edge at, isa_level isa) {
  const lambda_shape shape = {2, 9, 5};
  const index_t n = in.q.view().tokens, heads = in.q.view().heads;
  generator random(8);
  const tensor<float> logits = random_tensor<float>(random, 1, 1, heads);
  tensor<T> expected = output_for<T>(in);
  tensor<float> expected_lse(n, heads, 1);
  attention_options options;
  options.isa = isa;
  options.sink_logits = {logits.view().data, heads};
  options.lse = expected_lse.view();
  attend(in.q.view(), in.k.view(), in.v.view(), shape, position, expected.view(), options);

  const guarded<T> q(in.q, at), k(in.k, at), v(in.v, at), out(output_for<T>(in), at);
  const guarded<float> guarded_logits(logits, at), lse(tensor<float>(n, heads, 1), at);
  options.sink_logits = {guarded_logits.view().data, heads};
  options.lse = lse.view();
  attend(q.view(), k.view(), v.view(), shape, position, out.view(), options);
  EXPECT_TRUE(same_bits(out.view(), expected.view()));
  EXPECT_TRUE(same_bits(lse.view(), expected_lse.view()));

  auto cache = cache_for<f16>(in, shape, position, {7});
  attend(in.q.view(), in.k.view(), in.v.view(), cache, expected.view(), options);
  cache.clear();
  attend(q.view(), k.view(), v.view(), cache, out.view(), options);
  EXPECT_TRUE(same_bits(out.view(), expected.view()));
}

TEST_P(poison, beside_the_tensors_is_not_touched) {
  constexpr int seed = 7;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  for (const index_t n : {1, 5, 17, 35}) {
    for (const index_t head_dim : {2, 3, 17, 32, 33}) {
      const extents e = {n, 2, group(), head_dim, head_dim == 32 ? 32 : 34 - head_dim};
      SCOPED_TRACE(std::to_string(n) + " tokens, head_dim " + std::to_string(head_dim));
      const layout l = n % 3 == 0 ? layout::head_major : layout::token_major;
      with_encoding(encoding_under_test(), e.heads(), head_dim, [&](const auto& position) {
        for (const isa_level isa : isa_levels()) {
          SCOPED_TRACE(name_of(isa));
          for (const edge at : {edge::first, edge::last}) {
            if (has_own_kernels(isa, row_format::bf16))
              attend_at_the_edge(random_inputs<bfloat16>(random, e, l), position, at, isa);
            if (!has_own_kernels(isa, row_format::f32)) continue;
            attend_at_the_edge(random_inputs<float>(random, e, l), position, at, isa);
            attend_at_the_edge(random_inputs<double>(random, e, l), position, at, isa);
            attend_at_the_edge(random_inputs<half>(random, e, l), position, at, isa);
          }
        }
      });
    }
  }
}

}  // namespace
