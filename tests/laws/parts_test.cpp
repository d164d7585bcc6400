// Law 7: the results of parts of the keys, merged, == the whole.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// A result that owns its rows; its lse is as exact as the computation.
template <class Real>
struct part {
  tensor<Real> out;
  tensor<Real> lse;

  part(index_t tokens, index_t heads, index_t dim) : out(tokens, heads, dim), lse(tokens, heads, 1) {}
  auto result() { return partial_result{out.view(), lse.view()}; }
};

// How far apart two lse may be. Sums of up to 120 floats are off by 120 * 2^-24 each; weights that are rounded to bfloat16 by
// 2^-9 at most, and so is their sum; those to 1 / 65535 of the largest by half of that, each of 64 keys.
double lse_tolerance(row_format format) {
  return format == row_format::bf16 ? 0x1p-8 : format == row_format::int8 ? 64.0 / 65535 : 240 * 0x1p-24;
}

// Ranges that together have all keys once, in any order; some have none.
std::vector<index_range> random_ranges(generator& random, index_t num_keys) {
  std::vector<index_t> cuts = {0, num_keys};
  for (index_t c = draw(random, 0, 5); c > 0; --c) cuts.push_back(draw(random, 0, num_keys));
  std::sort(cuts.begin(), cuts.end());
  std::vector<index_range> ranges;
  for (std::size_t c = 1; c < cuts.size(); ++c) ranges.push_back({cuts[c - 1], cuts[c]});
  ranges.back().last = draw(random, 0, 1) == 0 ? num_keys : unlimited;
  std::shuffle(ranges.begin(), ranges.end(), random);
  return ranges;
}

// Merges the parts that attend(range, result) gives for random ranges: all at once; and one after the other, in place.
template <class Real, class Attend>
void expect_that_parts_make(const tensor<Real>& whole, const tensor<float>& whole_lse, generator& random,
                            index_t num_keys, row_format format, double bound, const sink_logits_view& sink_logits,
                            Attend&& attend) {
  const index_t tokens = whole.view().tokens, heads = whole.view().heads, dim = whole.view().dim;
  const std::vector<index_range> ranges = random_ranges(random, num_keys);
  std::vector<part<Real>> parts;
  std::vector<partial_result<Real, Real>> results;
  for (const index_range& range : ranges) {
    parts.emplace_back(tokens, heads, dim);
    attend(range, parts.back().result());
  }
  for (part<Real>& p : parts) results.push_back(p.result());

  part<Real> all(tokens, heads, dim);
  merge(results.data(), static_cast<index_t>(results.size()), all.result(), sink_logits);
  EXPECT_LE(nmse(all.out.view(), whole.view()), bound);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t h = 0; h < heads; ++h)
      EXPECT_NEAR(static_cast<double>(*all.lse.view().row(t, h)), static_cast<double>(*whole_lse.view().row(t, h)),
                  lse_tolerance(format));

  for (std::size_t r = 1; r + 1 < results.size(); ++r) merge(results[0], results[r], results[0]);
  if (results.size() > 1) merge(results.back(), results[0], all.result(), sink_logits);
  EXPECT_LE(nmse(all.out.view(), whole.view()), bound);
}

class parts_law : public law {};
INSTANTIATE_TEST_SUITE_P(laws, parts_law,
                         testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 4)), name_of_case);

constexpr lambda_shape shapes[] = {lm_infinite(3, 24),   {2, 40, 7},    {5, 1, 0},         {6, 0, 3},
                                   streaming_llm(4, 30), full_causal(), sliding_window(19)};

template <class T, class Real>
void of_a_sequence(encoding encoded, const extents& e, row_format format) {
  constexpr int seed = 7;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const inputs<T> in = random_inputs<T>(random, e);
  const std::vector<float> sinks(static_cast<std::size_t>(e.heads()), 0.5f);
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      for (const isa_level isa : isa_levels()) {
        if (!has_own_kernels(isa, format)) continue;
        SCOPED_TRACE(name_of(isa));
        tensor<float> lse(e.tokens, e.heads(), 1);
        attention_options options, whole_options;
        options.isa = whole_options.isa = isa;
        options.soft_cap = whole_options.soft_cap = 20;
        whole_options.sink_logits = {sinks.data(), e.heads()};
        whole_options.lse = lse.view();
        const tensor<Real> whole = attend_sequence<Real>(in, shape, position, whole_options);
        const auto attend = [&](const index_range& keys, const partial_result<Real, Real>& result) {
          attend_partial(in.q.view(), in.k.view(), in.v.view(), shape, position, keys, result, options);
        };
        expect_that_parts_make(whole, lse, random, e.tokens, format, between_two(tensor_bound<Real>(format, isa)),
                               whole_options.sink_logits, attend);
      }
    }
  });
}

TEST_P(parts_law, of_a_sequence_make_the_whole) {
  const extents e = {100, 2, group()};
  of_a_sequence<float, float>(encoding_under_test(), e, row_format::f32);
  of_a_sequence<double, double>(encoding_under_test(), e, row_format::f64);
  of_a_sequence<bfloat16, float>(encoding_under_test(), {100, 1, group(), 32, 64}, row_format::bf16);
}

// One token, a few, and a tile of them; the caches have wrapped.
TEST_P(parts_law, of_a_stream_make_the_whole) {
  constexpr int seed = 8;
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {120, 2, group()};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      if (shape.window == unlimited) continue;
      SCOPED_TRACE(to_string(shape));
      for_each_storage([&](auto storage, const char* name) {
        SCOPED_TRACE(name);
        using storage_type = decltype(storage);
        using real = typename storage_type::compute_type;
        generator random(seed);
        const inputs<> in = random_inputs(random, e);
        auto cache = cache_for<storage_type>(in, shape, position, {20});
        append(in.k.view(), in.v.view(), cache);
        for (const index_t queries : {1, 4, 20}) {
          const auto q = in.q.view().slice(e.tokens - queries, queries);
          tensor<real> whole(queries, e.heads(), e.v_head_dim);
          tensor<float> lse(queries, e.heads(), 1);
          attention_options options;
          options.lse = lse.view();
          attend(q, cache, whole.view(), options);
          const auto attend_range = [&](const index_range& keys, const partial_result<real, real>& result) {
            attend_partial(q, cache, keys, result);
          };
          expect_that_parts_make(whole, lse, random, e.tokens, storage_type::format,
                                 between_two(stored_bound<storage_type>(isa_level::automatic)), {}, attend_range);
        }
      });
    }
  });
}

// Rows outside a part are not read.
TEST_P(parts_law, leave_other_rows_alone) {
  constexpr int seed = 9;
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {100, 2, group()};
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      generator random(seed);
      const inputs<> in = random_inputs(random, e);
      const index_range keys = {draw(random, 0, 50), draw(random, 51, 99)};
      inputs<> poisoned = in;
      for (index_t t = 0; t < e.tokens; ++t) {
        if (t >= keys.first && t < keys.last) continue;
        for_each_element(poisoned.k.view().slice(t, 1), [](float& x) { x = std::numeric_limits<float>::quiet_NaN(); });
        for_each_element(poisoned.v.view().slice(t, 1), [](float& x) { x = std::numeric_limits<float>::infinity(); });
      }
      part<float> expected(e.tokens, e.heads(), e.v_head_dim), actual = expected;
      attend_partial(in.q.view(), in.k.view(), in.v.view(), shape, position, keys, expected.result());
      attend_partial(in.q.view(), poisoned.k.view(), poisoned.v.view(), shape, position, keys, actual.result());
      EXPECT_TRUE(same_bits(actual.out.view(), expected.out.view()));
      EXPECT_TRUE(same_bits(actual.lse.view(), expected.lse.view()));
    }
  });
}

}  // namespace
