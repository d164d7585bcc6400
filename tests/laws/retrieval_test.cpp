// The best keys of the middle == those of the formula, whatever pages were read to find them.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/reversed_executor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

class retrieval_law : public law {};
INSTANTIATE_TEST_SUITE_P(laws, retrieval_law,
                         testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 4)), name_of_case);

// Output and lse of few queries, in memory of their own.
template <class Real>
struct part {
  tensor<Real> out;
  tensor<double> lse;

  part(index_t tokens, index_t heads, index_t dim) : out(tokens, heads, dim), lse(tokens, heads, 1) {}
  auto result() { return partial_result{out.view(), lse.view()}; }
};

// A row of a token and head as a storage keeps it, of which the first numbers were multiplied.
template <class Storage>
std::vector<long double> stored(const float* row, index_t dim, index_t num_multiplied, double factor) {
  using real = typename Storage::compute_type;
  std::vector<real> numbers(static_cast<std::size_t>(dim));
  for (index_t d = 0; d < dim; ++d)
    numbers[static_cast<std::size_t>(d)] = static_cast<real>(row[d] * (d < num_multiplied ? factor : 1.0));
  alignas(16) unsigned char bytes[8 * 512] = {};
  const float scale = Storage::encode(numbers.data(), dim, bytes);
  Storage::decode(bytes, scale, dim, numbers.data());
  std::vector<long double> result(numbers.begin(), numbers.end());
  for (index_t d = 0; d < num_multiplied; ++d) result[static_cast<std::size_t>(d)] /= factor;
  return result;
}

// The formula for one query and head: of all keys of the middle the k with the highest scores.
template <class Storage, class Position>
std::vector<long double> expected_row(const inputs<>& in, const lambda_shape& shape, const Position& position,
                                      index_t query, index_t head, const top_k& best, double soft_cap,
                                      long double* lse) {
  const tensor_view<const float> q = in.q.view(), k = std::as_const(in.k).view(), v = std::as_const(in.v).view();
  const index_t kv_head = head / (q.heads / k.heads);
  const rotation_data rotation = position.data().rotation;
  const std::vector<long double> query_row(q.row(query, head), q.row(query, head) + q.dim);
  std::vector<std::pair<long double, index_t>> scores;
  for (index_t key = shape.num_sinks; key <= query - shape.window; ++key) {
    const auto row = stored<Storage>(k.row(key, kv_head), k.dim, 2 * rotation.num_pairs, rotation.factor);
    const long double score =
        position.score(query_row.data(), row.data(), k.dim, best.distance) / std::sqrt(static_cast<long double>(q.dim));
    scores.emplace_back(-score, key);
  }
  std::sort(scores.begin(), scores.end());
  scores.resize(std::min(scores.size(), static_cast<std::size_t>(best.k)));
  std::vector<long double> out(static_cast<std::size_t>(v.dim));
  long double sum = 0;
  for (const auto& [negative, key] : scores) {
    const long double capped = soft_cap == 0 ? -negative : soft_cap * std::tanh(-negative / soft_cap);
    const long double weight = std::exp(capped + position.bias(head, best.distance));
    const auto row = stored<Storage>(v.row(key, kv_head), v.dim, 0, 1);
    for (std::size_t d = 0; d < out.size(); ++d) out[d] += weight * row[d];
    sum += weight;
  }
  for (long double& number : out) number = sum == 0 ? 0 : number / sum;
  *lse = std::log(sum);
  return out;
}

template <class Storage>
void expect_best(encoding encoded, index_t group, const extents& e, double bound) {
  constexpr int seed = 41;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const inputs<> in = random_inputs<>(random, e);
  const lambda_shape shape = lm_infinite(3, 40);
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    using position_type = std::decay_t<decltype(position)>;
    middle_store<Storage, position_type> store(shape, position, e.kv_heads, e.head_dim, e.v_head_dim);
    append(in.k.view(), in.v.view(), store);
    for (const double soft_cap : {0.0, 3.0})
      for (const top_k& best : {top_k{1, 40}, top_k{7, 13}, top_k{1000, 0}}) {
        SCOPED_TRACE("k " + std::to_string(best.k) + ", group " + std::to_string(group));
        for (const isa_level isa : isa_levels()) {
          if (!has_own_kernels(isa, Storage::format)) continue;
          attention_options options;
          options.isa = isa;
          options.soft_cap = soft_cap;
          constexpr index_t num_queries = 2;
          part<typename Storage::compute_type> p(num_queries, e.heads(), e.v_head_dim);
          attend_top_k(in.q.view().slice(e.tokens - num_queries, num_queries), store, best, p.result(), options);
          error_sum error;
          for (index_t t = 0; t < num_queries; ++t)
            for (index_t h = 0; h < e.heads(); ++h) {
              long double lse = 0;
              const auto row =
                  expected_row<Storage>(in, shape, position, e.tokens - num_queries + t, h, best, soft_cap, &lse);
              for (index_t d = 0; d < e.v_head_dim; ++d)
                error.add(p.out.view().row(t, h)[d], row[static_cast<std::size_t>(d)]);
              EXPECT_NEAR(*p.lse.view().row(t, h), static_cast<double>(lse), 1e-4);
            }
          EXPECT_LE(error.nmse(), bound);
        }
      }
  });
}

TEST_P(retrieval_law, finds_the_best) {
  const extents e = {300, 1, group()};
  expect_best<f32>(encoding_under_test(), group(), e, arithmetic_bound<float>());
  expect_best<f64>(encoding_under_test(), group(), e, arithmetic_bound<double>());
  expect_best<f16>(encoding_under_test(), group(), e, arithmetic_bound<float>());
  expect_best<bf16>(encoding_under_test(), group(), e, arithmetic_bound<float>());
  expect_best<int8>(encoding_under_test(), group(), e, arithmetic_bound<float>());
}

// All keys of the middle at the limit, with those that the cache holds: full attention with clamped distances, as one softmax.
TEST_P(retrieval_law, of_all_keys_is_full_attention) {
  constexpr int seed = 43;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {300, 2, group()};
  const inputs<> in = random_inputs<>(random, e);
  const lambda_shape shape = lm_infinite(3, 50);
  const std::vector<float> sink_logits(static_cast<std::size_t>(e.heads()), 0.5f);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    using position_type = std::decay_t<decltype(position)>;
    attention_options options;
    options.sink_logits = {sink_logits.data(), e.heads()};
    const tensor<float> whole = attend_sequence<float>(in, {0, unlimited, 50}, position, options);
    auto cache = cache_for<f32>(in, shape, position);
    middle_store<f32, position_type> store(shape, position, e.kv_heads, e.head_dim, e.v_head_dim);
    append(in.k.view(), in.v.view(), cache);
    append(in.k.view(), in.v.view(), store);
    constexpr index_t num_queries = 5;
    const auto q = in.q.view().slice(e.tokens - num_queries, num_queries);
    part<float> near(num_queries, e.heads(), e.v_head_dim), far = near;
    attend_partial(q, cache, {0, unlimited}, near.result());
    attend_top_k(q, store, {unlimited, 50}, far.result());
    merge(near.result(), far.result(), near.result(), options.sink_logits);
    EXPECT_LE(nmse(near.out.view(), whole.view().slice(e.tokens - num_queries, num_queries)),
              between_two(arithmetic_bound<float>()));
  });
}

// The same bits, however the tokens came, and whoever computes; rows that are not of the middle are not read.
TEST_P(retrieval_law, leaves_every_bit) {
  constexpr int seed = 47;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {300, 2, group()};
  inputs<> in = random_inputs<>(random, e);
  const lambda_shape shape = lm_infinite(3, 50);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    using position_type = std::decay_t<decltype(position)>;
    const middle_store<int8, position_type> none(shape, position, e.kv_heads, e.head_dim, e.v_head_dim);
    const auto result_of = [&](const middle_store<int8, position_type>& store, const auto& executor) {
      part<float> p(2, e.heads(), e.v_head_dim);
      attend_top_k(in.q.view().slice(e.tokens - 2, 2), store, {9, 50}, p.result(), {}, executor);
      return p.out;
    };
    auto at_once = none, in_pieces = none, poisoned = none;
    append(in.k.view(), in.v.view(), at_once);
    const tensor<float> expected = result_of(at_once, serial_executor{});
    EXPECT_TRUE(same_bits(result_of(at_once, reversed_executor{}).view(), expected.view()));

    for (index_t first = 0, count; first < e.tokens; first += count) {
      count = std::min(e.tokens - first, draw(random, 1, 90));
      append(in.k.view().slice(0, 5), in.v.view().slice(0, 5), in_pieces);  // a draft that is rejected
      in_pieces.rewind(5);
      append(in.k.view().slice(first, count), in.v.view().slice(first, count), in_pieces);
    }
    const auto fork = in_pieces;
    in_pieces.clear();
    append(in.k.view().slice(50, 200), in.v.view().slice(20, 200), in_pieces);  // other rows in its place
    EXPECT_TRUE(same_bits(result_of(fork, serial_executor{}).view(), expected.view()));

    inputs<> bad = in;
    for (index_t t = 0; t < e.tokens; ++t)
      if (t < 3 || t > e.tokens - 1 - 50)
        for (index_t h = 0; h < e.kv_heads; ++h) {
          bad.k.view().row(t, h)[0] = std::numeric_limits<float>::quiet_NaN();
          bad.v.view().row(t, h)[0] = std::numeric_limits<float>::infinity();
        }
    append(bad.k.view(), bad.v.view(), poisoned);
    EXPECT_TRUE(same_bits(result_of(poisoned, serial_executor{}).view(), expected.view()));
  });
}

// Of many pages: keys that are alike lie together, and all but a few pages promise too little; of random ones most are read. What
// is found is the formula's either way.
template <class Storage>
void search_many_pages(const char* storage_name, index_t group) {
  constexpr int seed = 53;
  SCOPED_TRACE("seed " + std::to_string(seed) + ", " + storage_name + ", group " + std::to_string(group));
  generator random(seed);
  const extents e = {64 * 60, 1, group, 64, 16};
  const lambda_shape shape = lm_infinite(5, 64);
  const tensor<float> centres = random_tensor<float>(random, e.tokens / 64, 1, e.head_dim);
  const inputs<> scattered = random_inputs<>(random, e);
  constexpr index_t num_pages = 59;
  for (const float apart : {0.0f, 0.1f, 1.0f}) {  // of the distance of random keys; at 0 bounds are scores
    const bool alike = apart < 1;
    inputs<> in = scattered;
    for (index_t t = 0; alike && t < e.tokens; ++t)
      for (index_t d = 0; d < e.head_dim; ++d)
        in.k.view().row(t, 0)[d] = centres.view().row(t / 64, 0)[d] + apart * scattered.k.view().row(t, 0)[d];
    for (const isa_level isa : isa_levels()) {
      if (!has_own_kernels(isa, Storage::format)) continue;
      for (const index_t k : {1, 16, 1500}) {
        SCOPED_TRACE("k " + std::to_string(k) + ", apart " + std::to_string(apart));
        middle_store<Storage, none> store(shape, none(), 1, e.head_dim, e.v_head_dim);
        append(in.k.view(), in.v.view(), store);
        part<typename Storage::compute_type> p(1, group, e.v_head_dim);
        attention_options options;
        options.isa = isa;
        const top_k best = {k, 64};
        const index_t pages = attend_top_k(in.q.view().slice(e.tokens - 1, 1), store, best, p.result(), options);
        error_sum error;
        for (index_t head = 0; head < group; ++head) {
          long double lse = 0;
          const auto expected = expected_row<Storage>(in, shape, none(), e.tokens - 1, head, best, 0, &lse);
          for (index_t d = 0; d < e.v_head_dim; ++d)
            error.add(p.out.view().row(0, head)[d], expected[static_cast<std::size_t>(d)]);
          EXPECT_NEAR(*p.lse.view().row(0, head), static_cast<double>(lse), 1e-4);
        }
        EXPECT_LE(error.nmse(), 4 * arithmetic_bound<typename Storage::compute_type>());
        EXPECT_LE(pages, num_pages + (group == 1 ? 0 : 16 * group));
        if (alike && k <= 16 && group == 1) {
          EXPECT_LE(pages, 20) << "pruned";
        }
        part<typename Storage::compute_type> one(1, 1, e.v_head_dim);
        index_t alone = 0;
        for (index_t head = 0; head < group; ++head)
          alone += attend_top_k(token_major(std::as_const(in.q).view().row(e.tokens - 1, head), 1, 1, e.head_dim),
                                store, best, one.result(), options);
        EXPECT_LE(pages, alone) << "together they read no more than each for itself";
        if (k == 1500) {
          EXPECT_GE(pages, 1500 / 64) << "there are not as many in fewer";
        }
      }
    }
  }
}

TEST(many_pages, hold_what_the_formula_finds) {
  search_many_pages<f32>("f32", 1);
  search_many_pages<f64>("f64", 1);
  search_many_pages<f16>("f16", 1);
  search_many_pages<bf16>("bf16", 1);
  search_many_pages<int8>("int8", 1);
}

// Heads that need different pages, and heads that need the same.
TEST(many_pages, hold_what_the_formula_finds_for_a_group) {
  search_many_pages<f64>("f64", 2);
  search_many_pages<bf16>("bf16", 3);
  search_many_pages<int8>("int8", 4);
}

// A NaN or an infinity in a key is not among the best, or is; it hides no other.
TEST(many_pages, may_hold_anything) {
  constexpr int seed = 59;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {64 * 40, 1, 1, 16, 16};
  const inputs<> in = random_inputs<>(random, e);
  const auto result_of = [&](const inputs<>& given) {
    middle_store<f32, none> store(sliding_window(64), none(), 1, e.head_dim, e.v_head_dim);
    append(given.k.view(), given.v.view(), store);
    part<float> p(1, 1, e.v_head_dim);
    attend_top_k(in.q.view().slice(e.tokens - 1, 1), store, {9, 64}, p.result());
    return p.out;
  };
  inputs<> without = in, with_nan = in;
  for (const index_t token : {70, 700, 2000})
    for (index_t d = 0; d < e.head_dim; ++d) {
      const float against = in.q.view().row(e.tokens - 1, 0)[d] > 0 ? -1e3f : 1e3f;
      without.k.view().row(token, 0)[d] = against;  // the worst of all keys
      with_nan.k.view().row(token, 0)[d] = d == 5 ? std::numeric_limits<float>::quiet_NaN() : against;
    }
  EXPECT_TRUE(same_bits(result_of(with_nan).view(), result_of(without).view()));
}

}  // namespace
