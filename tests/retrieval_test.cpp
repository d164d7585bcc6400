#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/retrieval.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "refusal.hpp"
#include "tensors.hpp"

namespace la = lambda_attention;
using la::index_t;

namespace {

constexpr index_t tokens = 200, heads = 4, kv_heads = 2, dim = 16;
const la::lambda_shape shape = la::lm_infinite(3, 20);
using store_type = la::middle_store<la::f32, la::rope>;

store_type new_store() { return {shape, la::rope(dim), kv_heads, dim, dim}; }

// Rows that are kept as half as many numbers, each twice.
struct every_other {
  using compute_type = float;
  static constexpr la::row_format format = la::row_format::custom;
  static constexpr index_t row_bytes(index_t d) { return 4 * ((d + 1) / 2); }
  static float encode(const float* row, index_t d, void* stored) {
    for (index_t i = 0; i < d; i += 2) static_cast<float*>(stored)[i / 2] = row[i] / 2;
    return 2;
  }
  static void decode(const void* stored, float scale, index_t d, float* row) {
    for (index_t i = 0; i < d; ++i) row[i] = static_cast<const float*>(stored)[i / 2] * scale;
  }
};

constexpr index_t page = 64;  // tokens

// ln of the weight of the best key, for one query at the end of a stream of these keys, all of which it has left behind.
template <class Storage>
double best_logit(const dense<float>& q, const dense<float>& k) {
  la::middle_store<Storage, la::none> store({0, 0, 0}, {}, 1, k.dim, k.dim);
  la::append(k.view(), k.view(), store);
  dense<float> out(1, 1, k.dim);
  dense<double> lse(1, 1, 1);
  la::attend_top_k(q.view(), store, {1, 0}, la::partial_result{out.view(), lse.view()});
  return lse.elements[0];
}

// Pages of equal keys, those of one beside another differing by roundings alone: more pages than are read first.
template <class Storage>
void expect_best_of_near_ties(float sign, float difference) {
  constexpr index_t pages = 40, near_dim = 64;
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    const dense<float> q = normal<float>(1, 1, near_dim, seed), row = normal<float>(1, 1, near_dim, 100 + seed),
                       noise = normal<float>(pages, 1, near_dim, 200 + seed);
    dense<float> all(pages * page, 1, near_dim), one(page, 1, near_dim);
    double best = -HUGE_VAL;
    for (index_t p = 0; p < pages; ++p) {
      for (index_t t = 0; t < page; ++t)
        for (index_t d = 0; d < near_dim; ++d)
          one.view().row(t, 0)[d] = all.view().row(p * page + t, 0)[d] =
              sign * std::fabs(row.view().row(0, 0)[d]) * (1 + difference * noise.view().row(p, 0)[d]);
      best = std::max(best, best_logit<Storage>(q, one));
    }
    EXPECT_EQ(best_logit<Storage>(q, all), best) << "seed " << seed;
  }
}

}  // namespace

TEST(MiddleStore, CountsItsTokensAndGrows) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  store_type store = new_store();
  EXPECT_EQ(store.num_tokens(), 0);
  const index_t empty = store.bytes();
  la::append(s.k.view(), s.v.view(), store);
  EXPECT_EQ(store.num_tokens(), tokens);
  const index_t full = store.bytes();
  EXPECT_GE(full - empty, tokens * kv_heads * 2 * dim * 4);
  store.rewind(150);
  EXPECT_EQ(store.num_tokens(), 50);
  store.clear();
  EXPECT_EQ(store.num_tokens(), 0);
  EXPECT_EQ(store.bytes(), full);
}

TEST(MiddleStore, MayBeMovedToItself) {
  const sequence<float> s(tokens, heads, kv_heads, dim, dim);
  store_type store = new_store();
  la::append(s.k.view(), s.v.view(), store);
  const auto best = [&](store_type& from) {
    dense<float> out(tokens, heads, dim), lse(tokens, heads, 1);
    la::attend_top_k(s.q.view(), from, {2, 20}, la::partial_result{out.view(), lse.view()});
    return out.elements;
  };
  const std::vector<float> before = best(store);
  store_type& same = store;
  store = std::move(same);
  EXPECT_EQ(store.num_tokens(), tokens);
  EXPECT_EQ(best(store), before);
}

// Nothing is in the middle yet: no weight, as attend_partial() says of a part without keys.
TEST(AttendTopK, OfNoKeysIsNothing) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  store_type store = new_store();
  la::append(s.k.view().slice(0, 23), s.v.view().slice(0, 23), store);
  dense<float> out(1, heads, dim), lse(1, heads, 1);
  const la::partial_result result{out.view(), lse.view()};
  for (const index_t k : {5, 0}) {
    std::fill(out.elements.begin(), out.elements.end(), 5.0f);
    EXPECT_EQ(la::attend_top_k(s.q.view().slice(22, 1), store, {k, 20}, result), 0);
    EXPECT_EQ(out.elements, std::vector<float>(heads * dim));
    EXPECT_EQ(lse.elements, std::vector<float>(heads, -HUGE_VALF));
    if (k == 5) la::append(s.k.view().slice(23, 40), s.v.view().slice(23, 40), store);  // then there are, and k is 0
  }
}

TEST(AttendTopK, ReadsRowsOfACustomStorage) {
  sequence<> s(tokens, heads, kv_heads, dim, dim);
  for (auto* rows : {&s.k, &s.v})  // numbers that it keeps
    for (std::size_t i = 0; i < rows->elements.size(); i += 2) rows->elements[i + 1] = rows->elements[i];
  la::middle_store<every_other, la::alibi> custom(shape, la::alibi(heads), kv_heads, dim, dim);
  la::middle_store<la::f32, la::alibi> plain(shape, la::alibi(heads), kv_heads, dim, dim);
  la::append(s.k.view(), s.v.view(), custom);
  la::append(s.k.view(), s.v.view(), plain);
  dense<float> a(2, heads, dim), b = a, lse(2, heads, 1);
  la::attend_top_k(s.q.view().slice(tokens - 2, 2), custom, {9, 20}, la::partial_result{a.view(), lse.view()});
  la::attend_top_k(s.q.view().slice(tokens - 2, 2), plain, {9, 20}, la::partial_result{b.view(), lse.view()});
  EXPECT_LE(nmse(a.elements, std::vector<double>(b.elements.begin(), b.elements.end())), 1e-11);
}

TEST(AttendTopK, KeepsToAWorkspaceThatIsLargeEnough) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  store_type store = new_store();
  la::append(s.k.view(), s.v.view(), store);
  dense<float> out(1, heads, dim), lse(1, heads, 1);
  la::workspace scratch;
  la::attention_options options;
  options.workspace = &scratch;
  const auto decode = [&] {
    la::attend_top_k(s.q.view().slice(tokens - 1, 1), store, {9, 20}, la::partial_result{out.view(), lse.view()},
                     options);
  };
  decode();
  const auto* const memory = scratch.data();
  decode();
  EXPECT_EQ(scratch.data(), memory);
}

// What a page promises is rounded as scores are, and of rows as they are stored.
TEST(AttendTopK, PassesNoPageOverForItsRoundings) {
  for (const float sign : {1.0f, -1.0f}) {
    expect_best_of_near_ties<la::f32>(sign, 0x1p-23f);
    expect_best_of_near_ties<la::bf16>(sign, 0x1p-8f);
  }
}

// A page with an infinity promises everything.
TEST(AttendTopK, FindsAKeyBesideAnInfinity) {
  dense<float> q = normal<float>(1, 1, dim, 1), k = normal<float>(30 * page, 1, dim, 2);
  for (float& x : q.elements) x = std::fabs(x) + 1;
  std::fill(k.view().row(777, 0), k.view().row(777, 0) + dim, 3.0f);  // the best
  const double best = best_logit<la::f32>(q, k);
  k.view().row(778, 0)[5] = -HUGE_VALF;
  EXPECT_EQ(best_logit<la::f32>(q, k), best);
}

// However far away the best keys count, their bias moves all of them alike.
TEST(AttendTopK, WeighsKeysWhateverTheirBias) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  la::middle_store<la::f32, la::alibi> store(shape, la::alibi(heads), kv_heads, dim, dim);
  la::append(s.k.view(), s.v.view(), store);
  dense<float> near(1, heads, dim), far = near, near_lse(1, heads, 1), far_lse = near_lse;
  const auto q = s.q.view().slice(tokens - 1, 1);
  la::attend_top_k(q, store, {9, 0}, la::partial_result{near.view(), near_lse.view()});
  la::attend_top_k(q, store, {9, index_t{1} << 24}, la::partial_result{far.view(), far_lse.view()});
  EXPECT_EQ(near.elements, far.elements);
  for (std::size_t h = 0; h < heads; ++h)
    EXPECT_NEAR(far_lse.elements[h] / (near_lse.elements[h] - std::exp2(-2.0 * static_cast<double>(h + 1)) * 0x1p24), 1,
                1e-6);
}

// Pages that promise one head most are read for it alone, others once for up to four heads.
TEST(AttendTopK, ReadsPagesOnceForAGroup) {
  constexpr index_t many = 6400, pages = 100, promising = 16;
  for (const auto& [group, sets] : {std::pair<index_t, index_t>{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 2}, {9, 3}}) {
    const sequence<> s(many, group, 1, dim, dim);
    la::middle_store<la::f32, la::rope> store(la::lm_infinite(3, 20), la::rope(dim), 1, dim, dim);
    la::append(s.k.view(), s.v.view(), store);
    dense<float> out(1, group, dim), lse(1, group, 1);
    const index_t read = la::attend_top_k(s.q.view().slice(many - 1, 1), store, {la::unlimited, 20},
                                          la::partial_result{out.view(), lse.view()});
    const index_t once = pages * sets, alone = group == 5 || group == 9 ? group - 1 : group > 1 ? group : 0;
    EXPECT_GE(read, once) << "group " << group;
    EXPECT_LE(read, once + alone * promising) << "group " << group;
  }
}

// In place of the queries; sinks and window without end; more keys than there are.
TEST(AttendTopK, TakesWhatItCan) {
  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  dense<float> q(1, heads, dim), out = q, lse(1, heads, 1);
  std::copy_n(s.q.view().row(tokens - 1, 0), heads * dim, q.elements.data());
  store_type store = new_store();
  la::append(s.k.view(), s.v.view(), store);
  la::attend_top_k(q.view(), store, {la::unlimited, 20}, la::partial_result{out.view(), lse.view()});
  la::attend_top_k(q.view(), store, {la::unlimited, 20}, la::partial_result{q.view(), lse.view()});
  EXPECT_EQ(q.elements, out.elements);
  for (const la::lambda_shape& all : {la::full_causal(), la::lambda_shape{la::unlimited, 5, 5}}) {
    store_type nothing(all, la::rope(dim), kv_heads, dim, dim);
    la::append(s.k.view(), s.v.view(), nothing);
    EXPECT_EQ(la::attend_top_k(out.view(), nothing, {5, 20}, la::partial_result{out.view(), lse.view()}), 0);
    EXPECT_EQ(out.elements, std::vector<float>(heads * dim));
  }
}

TEST(MiddleStore, TellsWhatItWasMadeFor) {
  const la::middle_store<la::f32, la::none> store({2, 20, 30}, la::none(), 3, 16, 32);
  EXPECT_EQ(store.shape().num_sinks, 2);
  EXPECT_EQ(store.shape().window, 20);
  EXPECT_EQ(store.shape().distance_limit, 30);
  EXPECT_EQ(store.num_kv_heads(), 3);
  EXPECT_EQ(store.head_dim(), 16);
  EXPECT_EQ(store.v_head_dim(), 32);
}

TEST(MiddleStore, Refusals) {
  const la::rope position(dim);
  const auto refused = [&](const la::lambda_shape& given, index_t num_heads, index_t head_dim, index_t v_head_dim) {
    return refusal([&] { store_type(given, position, num_heads, head_dim, v_head_dim); });
  };
  EXPECT_EQ(refused({-1, 20, 20}, 1, dim, dim), "middle_store: expected num_sinks >= 0, got -1");
  EXPECT_EQ(refused(shape, 0, dim, dim), "middle_store: expected 1 <= num_kv_heads <= 2^40, got 0");
  EXPECT_EQ(refused(shape, 1, 0, dim), "middle_store: expected 1 <= head_dim <= 512, got 0");
  EXPECT_EQ(refused(shape, 1, dim, 513), "middle_store: expected 1 <= v_head_dim <= 512, got 513");
  EXPECT_EQ(refused(shape, 1, 32, dim), "middle_store: expected head_dim = 16, that of the position encoding, got 32");

  const sequence<> s(tokens, heads, kv_heads, dim, dim);
  const dense<float> other(tokens, 1, dim), wide(tokens, kv_heads, 2 * dim);
  store_type store = new_store();
  la::append(s.k.view().slice(0, 5), s.v.view().slice(0, 5), store);
  const auto append_refused = [&](const la::tensor_view<const float>& k, const la::tensor_view<const float>& v) {
    const std::string message = refusal([&] { la::append(k, v, store); });
    EXPECT_EQ(store.num_tokens(), 5);
    return message;
  };
  EXPECT_EQ(append_refused(other.view(), other.view()), "append: expected k.heads == store.num_kv_heads, got 1 and 2");
  EXPECT_EQ(append_refused(wide.view(), s.v.view()), "append: expected k.dim == store.head_dim, got 32 and 16");
  EXPECT_EQ(append_refused(s.k.view(), wide.view()), "append: expected v.dim == store.v_head_dim, got 32 and 16");
  EXPECT_EQ(append_refused(s.k.view(), s.v.view().slice(0, 1)), "append: expected v.tokens == k.tokens, got 1 and 200");
  const la::tensor_view<const float> endless(s.k.elements.data(), index_t{1} << 40, kv_heads, dim, 0, dim);
  EXPECT_EQ(append_refused(endless, endless),
            "append: expected a store of at most 2^40 tokens, got 5 and 1099511627776 more");
  EXPECT_NE(refusal([&] { la::append(s.k.view(), s.v.view(), store, static_cast<la::isa_level>(7)); }), "accepted");
  EXPECT_EQ(store.num_tokens(), 5);
  for (const index_t count : {-1, 6})
    EXPECT_EQ(refusal([&] { store.rewind(count); }),
              "rewind: expected 0 <= tokens <= 5, those of the store, got " + std::to_string(count));
}

TEST(AttendTopK, Refusals) {
  sequence<> s(tokens, heads, kv_heads, dim, dim);
  store_type store = new_store();
  la::append(s.k.view(), s.v.view(), store);
  std::fill(s.out.elements.begin(), s.out.elements.end(), 5.0f);
  dense<float> lse(tokens, heads, 1);
  struct call {
    la::tensor_view<const float> q;
    la::top_k best;
    la::partial_result<float> result;
    la::attention_options options;
  };
  const auto refused = [&](auto&& change) {
    call c = {s.q.view().slice(0, 2), {5, 20}, {s.out.view().slice(0, 2), lse.view().slice(0, 2)}, {}};
    change(c);
    const std::string message = refusal([&] { la::attend_top_k(c.q, store, c.best, c.result, c.options); });
    EXPECT_EQ(s.out.elements, std::vector<float>(s.out.elements.size(), 5.0f)) << message;
    return message;
  };
  EXPECT_EQ(refused([](call& c) { c.best.k = -1; }), "attend_top_k: expected k >= 0 and distance >= 0, got -1 and 20");
  EXPECT_EQ(refused([](call& c) { c.best.distance = -1; }),
            "attend_top_k: expected k >= 0 and distance >= 0, got 5 and -1");
  EXPECT_EQ(refused([](call& c) { c.options.first_position = 7; }),
            "attend_top_k: expected options.first_position = 0, got 7");
  EXPECT_EQ(refused([&](call& c) { c.q.dim = 8; }), "attend_top_k: expected q.dim == store.head_dim, got 8 and 16");
  EXPECT_EQ(refused([&](call& c) { c.result.lse = s.out.view().slice(5, 2); }),
            "attend_top_k: expected result.lse to be [2, 4, 1], got [2, 4, 16]");
  const float logits[heads] = {};
  EXPECT_EQ(refused([&](call& c) {
              c.options.sink_logits = {logits, heads};
            }),
            "attend_top_k: expected no options.sink_logits, for they are merge()'s, got 4");
  store.rewind(tokens - 1);
  EXPECT_EQ(refused([](call&) {}), "attend_top_k: expected q.tokens <= 1, those of the store, got 2");
}
