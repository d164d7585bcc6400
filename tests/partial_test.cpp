#include <lambda_attention/partial.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

constexpr index_t tokens = 5, heads = 3, dim = 21;
constexpr float infinity = std::numeric_limits<float>::infinity();

// Rows and their lse, drawn at random.
template <class T = float, class Lse = float>
struct part {
  dense<T> out;
  dense<Lse> lse;

  explicit part(std::uint32_t seed) : out(normal<T>(tokens, heads, dim, seed)), lse(tokens, heads, 1) {
    const dense<float> numbers = normal<float>(tokens, heads, 1, seed + 100);
    for (std::size_t i = 0; i < lse.elements.size(); ++i) lse.elements[i] = static_cast<Lse>(3 * numbers.elements[i]);
  }
  auto view() { return la::partial_result{out.view(), lse.view()}; }
};

// The formula, in long double.
struct merged_rows {
  std::vector<double> out, lse;
};
template <class... Part>
merged_rows merged(const std::vector<float>& sink_logits, const Part&... parts) {
  merged_rows rows;
  for (std::size_t row = 0; row < tokens * heads; ++row) {
    const auto weight = [&](const auto& p) { return std::exp(static_cast<long double>(p.lse.elements[row])); };
    const long double sum = (weight(parts) + ...);
    const long double sink = sink_logits.empty() ? 0 : std::exp(static_cast<long double>(sink_logits[row % heads]));
    for (std::size_t d = row * dim; d < (row + 1) * dim; ++d) {
      const auto number = [&](const auto& p) {
        return static_cast<long double>(la::reference::number(p.out.elements[d]));
      };
      rows.out.push_back(static_cast<double>(((weight(parts) * number(parts)) + ...) / (sum + sink)));
    }
    rows.lse.push_back(static_cast<double>(std::log(sum)));
  }
  return rows;
}

template <class Result>
void expect_near(const Result& actual, const merged_rows& expected, double tolerance) {
  for (std::size_t i = 0; i < expected.out.size(); ++i)
    ASSERT_NEAR(static_cast<double>(la::reference::number(actual.out.elements[i])), expected.out[i], tolerance) << i;
  for (std::size_t i = 0; i < expected.lse.size(); ++i)
    ASSERT_NEAR(static_cast<double>(actual.lse.elements[i]), expected.lse[i], 1e-5) << i;
}

}  // namespace

TEST(Merge, OfTwoAndOfManyIsTheFormula) {
  part<> a(1), b(2), c(3), out(9);
  la::merge(a.view(), b.view(), out.view());
  expect_near(out, merged({}, a, b), 1e-6);
  const la::partial_result<float> parts[] = {a.view(), b.view(), c.view()};
  la::merge(parts, 3, out.view());
  expect_near(out, merged({}, a, b, c), 1e-6);
  la::merge(parts, 1, out.view());
  expect_near(out, merged({}, a), 1e-6);
}

TEST(Merge, IsAssociativeAndCommutative) {
  part<> a(1), b(2), c(3), left(9), right(9);
  la::merge(a.view(), b.view(), left.view());
  la::merge(left.view(), c.view(), left.view());
  la::merge(c.view(), b.view(), right.view());
  la::merge(a.view(), right.view(), right.view());  // in place, on either side
  expect_near(left, merged({}, a, b, c), 1e-6);
  expect_near(right, merged({}, a, b, c), 1e-6);
}

// Learned sinks weigh in the denominator alone, however large.
TEST(Merge, TakesLearnedSinksInOnce) {
  part<> a(1), b(2), out(9);
  for (const float logit : {-50.0f, 0.0f, 3.0f, 30.0f}) {
    const std::vector<float> logits = {logit, 0.5f, -1.0f};
    la::merge(a.view(), b.view(), out.view(), {logits.data(), heads});
    expect_near(out, merged(logits, a, b), 1e-6);
  }
}

// Where there are no keys a row says nothing, whatever is in it.
TEST(Merge, PartsWithoutKeysWeighNothing) {
  part<> a(1), b(2), out(9);
  for (float& lse : b.lse.elements) lse = -infinity;
  for (float& x : b.out.elements) x = std::numeric_limits<float>::quiet_NaN();
  la::merge(a.view(), b.view(), out.view());
  expect_near(out, merged({}, a), 1e-6);
  la::merge(b.view(), b.view(), out.view());
  for (const float x : out.out.elements) EXPECT_EQ(x, 0);
  for (const float x : out.lse.elements) EXPECT_EQ(x, -infinity);
  la::merge<float, float>(nullptr, 0, out.view());
  for (const float x : out.out.elements) EXPECT_EQ(x, 0);
  for (const float x : out.lse.elements) EXPECT_EQ(x, -infinity);
}

TEST(Merge, DoesNotOverflow) {
  part<> a(1), b(2), out(9);
  for (float& lse : a.lse.elements) lse = 1e30f;
  for (float& lse : b.lse.elements) lse = -1e30f;
  la::merge(a.view(), b.view(), out.view());
  EXPECT_TRUE(same_bits(out.out.elements, a.out.elements));
  EXPECT_TRUE(same_bits(out.lse.elements, a.lse.elements));
}

TEST(Merge, RowsNearTheLargestNumberDoNotOverflow) {
  part<> a(1), out(9);
  for (float& x : a.out.elements) x = 3e38f;
  const la::partial_result<float> parts[] = {a.view(), a.view(), a.view()};
  la::merge(parts, 3, out.view());
  for (const float x : out.out.elements) EXPECT_NEAR(x / 3e38f, 1, 1e-6);
}

TEST(Merge, ANaNStaysOne) {
  part<> a(1), b(2), out(9);
  a.lse.elements[4] = std::numeric_limits<float>::quiet_NaN();
  for (const bool first : {true, false}) {
    first ? la::merge(a.view(), b.view(), out.view()) : la::merge(b.view(), a.view(), out.view());
    EXPECT_TRUE(std::isnan(out.out.elements[4 * dim]));
    EXPECT_FALSE(std::isnan(out.out.elements[5 * dim]));
  }
}

TEST(Merge, PartsAndResultMayBeOfAnyType) {
  part<la::half> a(1);
  part<double, double> b(2), exact(9), c(3);
  part<la::bfloat16> narrow(9);
  la::merge(a.view(), b.view(), exact.view());
  expect_near(exact, merged({}, a, b), 1e-14);
  la::merge(c.view(), b.view(), exact.view());
  expect_near(exact, merged({}, c, b), 1e-14);
  la::merge(a.view(), b.view(), narrow.view());
  expect_near(narrow, merged({}, a, b), 0.02);
  part<> wide(9);
  la::merge(a.view(), la::partial_result{std::as_const(wide.out).view(), std::as_const(wide.lse).view()}, wide.view());
  // In any layout: one head of a buffer of [head, token, dim], without the lse.
  part<> p(4), q(5), out(9);
  std::vector<float> head_major(tokens * heads * dim);
  la::merge(p.view(), q.view(),
            la::partial_result{la::head_major(head_major.data(), tokens, heads, dim), la::tensor_view<float>{}});
  la::merge(p.view(), q.view(), out.view());
  for (index_t t = 0; t < tokens; ++t)
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < dim; ++d)
        EXPECT_EQ(head_major[static_cast<std::size_t>((h * tokens + t) * dim + d)], out.out.view().row(t, h)[d]);
}

TEST(Merge, Refusals) {
  part<> a(1), b(2), out(9);
  const std::vector<float> before = out.out.elements;
  const auto merging = [&](auto&& part, auto&& result, const la::sink_logits_view& sinks = {}) {
    return refusal([&] { la::merge(part, b.view(), result, sinks); });
  };
  const auto with_out = [](auto view, auto change) {
    change(view.out);
    return view;
  };
  const auto with_lse = [](auto view, auto change) {
    change(view.lse);
    return view;
  };
  EXPECT_EQ(merging(with_out(a.view(), [](auto& v) { v.tokens = 4; }), out.view()),
            "merge: expected parts of [5, 3, 21], as the result, got [4, 3, 21]");
  EXPECT_EQ(merging(with_out(a.view(), [](auto& v) { v.heads = 2; }), out.view()),
            "merge: expected parts of [5, 3, 21], as the result, got [5, 2, 21]");
  EXPECT_EQ(merging(a.view(), with_out(out.view(), [](auto& v) { v.data = nullptr; })),
            "merge: expected result.out with data, got a null pointer");
  EXPECT_EQ(merging(with_out(a.view(), [](auto& v) { v.dim = 20; }), out.view()),
            "merge: expected parts of [5, 3, 21], as the result, got [5, 3, 20]");
  EXPECT_EQ(merging(with_out(a.view(), [](auto& v) { v.data = nullptr; }), out.view()),
            "merge: expected out of a part with data, got a null pointer");
  EXPECT_EQ(merging(with_lse(a.view(), [](auto& v) { v.heads = 2; }), out.view()),
            "merge: expected lse of a part to be [5, 3, 1], got [5, 2, 1]");
  EXPECT_EQ(merging(with_lse(a.view(), [](auto& v) { v.data = nullptr; }), out.view()),
            "merge: expected lse of a part with data, got a null pointer");
  EXPECT_EQ(merging(a.view(), with_lse(out.view(), [](auto& v) { v.dim = 2; })),
            "merge: expected result.lse to be [5, 3, 1], got [5, 3, 2]");
  EXPECT_EQ(
      merging(a.view(), with_out(out.view(), [](auto& v) { v.token_stride = 2; })),
      "merge: expected result.out with rows that do not overlap, got dim = 21, token_stride = 2, head_stride = 21");
  EXPECT_EQ(merging(a.view(), with_out(out.view(), [](auto& v) { v.dim = 513; })),
            "merge: expected 1 <= result.out.dim <= 512, got 513");
  const std::vector<float> logits(4);
  EXPECT_EQ(merging(a.view(), out.view(), {logits.data(), 4}), "merge: expected sink_logits for 3 heads, got 4");
  EXPECT_EQ(merging(a.view(), out.view(), {nullptr, 3}),
            "merge: expected sink_logits for 3 heads, got 3 at a null pointer");
  constexpr index_t too_many = index_t{1} << 62;  // logits, of no rows
  const la::tensor_view<float> nothing(nullptr, 0, too_many, 1, 0, 0);
  EXPECT_EQ(refusal([&] {
              la::merge<float, float>(nullptr, 0, la::partial_result{nothing, nothing}, {logits.data(), too_many});
            }),
            "merge: expected sink_logits to end within 2^63 bytes, got [1, 1, 4611686018427387904] with strides 0, 0");

  constexpr const char* apart =
      "merge: expected the result to be a part, row for row, or apart from it, got overlapping memory";
  EXPECT_EQ(merging(a.view(), with_out(out.view(), [&](auto& v) { v.data = b.out.elements.data() + 1; })), apart);
  EXPECT_EQ(merging(a.view(), with_lse(out.view(), [&](auto& v) { v.data = b.lse.elements.data() + 1; })), apart);
  EXPECT_EQ(merging(a.view(), with_lse(out.view(), [&](auto& v) { v.data = b.out.elements.data(); })), apart);
  EXPECT_EQ(merging(with_lse(a.view(), [&](auto& v) { v.data = out.out.elements.data() + 40; }), out.view()), apart);
  constexpr const char* of_result =
      "merge: expected result.out, result.lse and sink_logits apart from each other, got overlapping memory";
  EXPECT_EQ(merging(a.view(), with_lse(out.view(), [&](auto& v) { v.data = out.out.elements.data() + 40; })),
            of_result);
  EXPECT_EQ(merging(a.view(), out.view(), {out.out.elements.data(), 3}), of_result);
  EXPECT_EQ(merging(a.view(), out.view(), {out.lse.elements.data(), 3}), of_result);
  EXPECT_EQ(refusal([&] { la::merge<float, float>(nullptr, 2, out.view()); }),
            "merge: expected num_parts >= 0 parts, got 2 at a null pointer");
  const la::partial_result<float> parts[] = {a.view()};
  EXPECT_EQ(refusal([&] { la::merge(parts, -1, out.view()); }), "merge: expected num_parts >= 0 parts, got -1");
  EXPECT_TRUE(same_bits(out.out.elements, before));
}

TEST(AttendPartial, Refusals) {
  sequence<float> s(tokens, heads, 1, dim, dim);
  part<> result(9);
  const std::vector<float> before = result.out.elements;
  struct arguments {
    la::index_range keys = {0, 5};
    la::partial_result<float> result;
    la::attention_options options;
  };
  la::kv_cache<la::f32, la::none> cache(la::lm_infinite(1, 3), {}, 1, dim, dim);
  la::append(s.k.view(), s.v.view(), cache);
  const auto both = [&](auto change) {
    arguments a;
    a.result = result.view();
    change(a);
    const std::string of_sequence = refusal([&] {
      la::attend_partial(s.q.view(), s.k.view(), s.v.view(), la::lm_infinite(1, 3), la::none(), a.keys, a.result,
                         a.options);
    });
    const std::string of_stream = refusal([&] { la::attend_partial(s.q.view(), cache, a.keys, a.result, a.options); });
    EXPECT_EQ(of_sequence, of_stream);
    return of_sequence;
  };
  EXPECT_EQ(both([](arguments& a) {
              a.keys = {-1, 5};
            }),
            "attend_partial: expected keys with 0 <= first <= last, got first = -1, last = 5");
  EXPECT_EQ(both([](arguments& a) {
              a.keys = {4, 3};
            }),
            "attend_partial: expected keys with 0 <= first <= last, got first = 4, last = 3");
  EXPECT_EQ(both([&](arguments& a) { a.options.lse = result.lse.view(); }),
            "attend_partial: expected no options.lse, for the result has one, got one");
  const std::vector<float> logits(heads);
  EXPECT_EQ(both([&](arguments& a) {
              a.options.sink_logits = {logits.data(), heads};
            }),
            "attend_partial: expected no options.sink_logits, for they are merge()'s, got 3");
  EXPECT_EQ(both([](arguments& a) { a.result.lse.tokens = 4; }),
            "attend_partial: expected result.lse to be [5, 3, 1], got [4, 3, 1]");
  EXPECT_EQ(both([](arguments& a) { a.result.lse.data = nullptr; }),
            "attend_partial: expected result.lse with data, got a null pointer");
  EXPECT_EQ(both([&](arguments& a) { a.result.lse.data = s.q.elements.data(); }),
            "attend_partial: expected result.lse not to overlap another tensor, got overlapping memory");
  EXPECT_EQ(both([&](arguments& a) { a.result.lse.data = a.result.out.data + 3; }),
            "attend_partial: expected result.lse not to overlap another tensor, got overlapping memory");
  EXPECT_EQ(both([](arguments& a) { a.result.out.heads = 2; }),
            "attend_partial: expected out.heads == q.heads, got 2 and 3");
  const la::kv_cache<la::f32, la::none> empty(la::lm_infinite(1, 3), {}, 1, dim, dim);
  EXPECT_EQ(refusal([&] {
              la::attend_partial(s.q.view(), empty, {0, 5}, result.view());
            }),
            "attend_partial: expected q.tokens <= cache.num_tokens(), got 5 and 0");
  EXPECT_TRUE(same_bits(result.out.elements, before));
  EXPECT_EQ(both([](arguments&) {}), "accepted");
}

// Beside queries that see some of the range.
TEST(AttendPartial, OfNoKeysOfOneQueryIsEmpty) {
  sequence<float> s(tokens, heads, 1, dim, dim);
  part<> result(9);
  la::kv_cache<la::f32, la::none> cache(la::sliding_window(1), {}, 1, dim, dim);
  la::append(s.k.view(), s.v.view(), cache);
  la::attend_partial(s.q.view().slice(2, 3), cache, {3, 4},
                     la::partial_result{result.out.view().slice(2, 3), result.lse.view().slice(2, 3)});
  for (const index_t t : {2, 4}) {
    for (index_t h = 0; h < heads; ++h) {
      EXPECT_EQ(*result.lse.view().row(t, h), -infinity);
      for (index_t d = 0; d < dim; ++d) EXPECT_EQ(result.out.view().row(t, h)[d], 0);
    }
  }
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d) EXPECT_EQ(result.out.view().row(3, h)[d], s.v.view().row(3, 0)[d]);
}

// A range that no query sees: zeros, and -infinity.
TEST(AttendPartial, OfNoKeysIsEmpty) {
  sequence<float> s(tokens, heads, 1, dim, dim);
  part<> result(9);
  for (const la::index_range& keys : {la::index_range{3, 3}, la::index_range{5, la::unlimited}}) {
    la::attend_partial(s.q.view(), s.k.view(), s.v.view(), la::full_causal(), la::none(), keys, result.view());
    for (const float x : result.out.elements) EXPECT_EQ(x, 0);
    for (const float x : result.lse.elements) EXPECT_EQ(x, -infinity);
  }
}
