// Law 7: the results of parts of the keys, merged, == the whole.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/reversed_executor.hpp>

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
  for (index_t c = draw(random, 1, 5); c > 0; --c) cuts.push_back(draw(random, 0, num_keys));
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

  // Of two, in place of the first of them.
  for (std::size_t r = 1; r + 1 < results.size(); ++r) merge(results[0], results[r], results[0]);
  part<Real> by_two(tokens, heads, dim);
  merge(results.back(), results[0], by_two.result(), sink_logits);
  EXPECT_LE(nmse(by_two.out.view(), whole.view()), bound);
  EXPECT_LE(nmse(by_two.lse.view(), all.lse.view()), arithmetic_bound<Real>());
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

// Rows outside a part are not read, though they lie in the same pair, or in the same step of a matrix.
template <class T>
void leave_other_rows_alone(encoding encoded, const extents& e, row_format format) {
  constexpr int seed = 9;
  SCOPED_TRACE("seed " + std::to_string(seed));
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      generator random(seed);
      const inputs<T> in = random_inputs<T>(random, e);
      const index_range keys = {draw(random, 0, 25) * 2 + 1, draw(random, 26, 49) * 2 + 1};
      inputs<T> poisoned = in;
      for (index_t t = 0; t < e.tokens; ++t) {
        if (t >= keys.first && t < keys.last) continue;
        const auto poison = [](T& x) { x = element<T>(std::numeric_limits<double>::quiet_NaN()); };
        for_each_element(poisoned.k.view().slice(t, 1), poison);
        for_each_element(poisoned.v.view().slice(t, 1), poison);
      }
      for (const isa_level isa : isa_levels()) {
        if (!has_own_kernels(isa, format)) continue;
        SCOPED_TRACE(name_of(isa));
        attention_options options;
        options.isa = isa;
        part<float> expected(e.tokens, e.heads(), e.v_head_dim), actual = expected;
        attend_partial(in.q.view(), in.k.view(), in.v.view(), shape, position, keys, expected.result(), options);
        attend_partial(in.q.view(), poisoned.k.view(), poisoned.v.view(), shape, position, keys, actual.result(),
                       options);
        EXPECT_TRUE(same_bits(actual.out.view(), expected.out.view()));
        EXPECT_TRUE(same_bits(actual.lse.view(), expected.lse.view()));
      }
    }
  });
}

TEST_P(parts_law, leave_other_rows_alone) {
  leave_other_rows_alone<float>(encoding_under_test(), {100, 2, group()}, row_format::f32);
  leave_other_rows_alone<bfloat16>(encoding_under_test(), {100, 1, group(), 32, 64}, row_format::bf16);
}

// Of so many keys that workers share them, where one query sees enough for another share and the next does not.
TEST(parts, whose_keys_are_shared_by_workers_make_the_whole) {
  constexpr int seed = 10;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {2400, 1, 2};
  const inputs<> in = random_inputs(random, e);
  const rope position(e.head_dim);
  const lambda_shape shape = lm_infinite(4, 2300);
  auto cache = cache_for<f32>(in, shape, position, {20});
  append(in.k.view(), in.v.view(), cache);
  const auto q = in.q.view().slice(e.tokens - 4, 4);
  tensor<float> whole(4, e.heads(), e.v_head_dim);
  attend(q, cache, whole.view());
  // The windows of the four queries begin at the keys 97 ... 100, and their sinks are four: 2049 ... 2046 keys of the first
  // part.
  part<float> some(4, e.heads(), e.v_head_dim), same = some, more = some;
  const index_range first = {0, 2142}, second = {2142, unlimited};
  attend_partial(q, cache, first, some.result());
  attend_partial(q, cache, first, same.result(), {}, reversed_executor());
  EXPECT_TRUE(same_bits(some.out.view(), same.out.view()));
  EXPECT_TRUE(same_bits(some.lse.view(), same.lse.view()));
  attend_partial(q, cache, second, more.result());
  merge(some.result(), more.result(), some.result());
  EXPECT_LE(nmse(some.out.view(), whole.view()), between_two(stored_bound<f32>(isa_level::automatic)));
}

}  // namespace
