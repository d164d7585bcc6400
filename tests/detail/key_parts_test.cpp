#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/key_parts.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::attention_job;
using la::detail::buffer;
using la::detail::join_parts;
using la::detail::keys_per_part;
using la::detail::num_parts_of;
using la::detail::partial_results;
using la::detail::row_multiple;
using la::detail::scratch_arena;
using la::detail::scratch_sizes;

namespace {

constexpr index_t v_head_dim = 20, padded_v_dim = 32, group = 3, num_queries = 2;

constexpr scratch_sizes sizes_for(index_t num_parts) {
  scratch_sizes sizes;
  sizes.v_head_dim = padded_v_dim;
  sizes.partial_rows = num_queries * num_parts * group;
  return sizes;
}

// Two queries, three heads of one KV head, and what parts of their keys gave.
template <class Real>
struct call {
  index_t num_parts;
  buffer<unsigned char> memory;
  std::vector<Real> out = std::vector<Real>(num_queries * group * v_head_dim);
  std::vector<float> lse = std::vector<float>(num_queries * group);
  attention_job<Real> job = {};

  explicit call(index_t parts) : num_parts(parts), memory(1 << 16) {
    job.plan = {la::sliding_window(parts * la::detail::fewest_keys_per_part), true};
    job.first_query = 1 << 20;
    job.q.tokens = num_queries;
    job.q.heads = group;
    job.num_kv_heads = 1;
    job.out = la::detail::erase(la::token_major(out.data(), num_queries, group, v_head_dim));
    job.lse = la::detail::erase(la::token_major(lse.data(), num_queries, group, 1));
    job.one_position = &la::detail::position_kernels_for<Real>(la::isa_level::automatic, false);
  }

  partial_results<Real> partials() {
    scratch_arena arena(memory.data());
    return partial_results<Real>(arena, sizes_for(num_parts));
  }

  void join() {
    alignas(la::detail::buffer_alignment) Real row[padded_v_dim], scores[1];
    join_parts(la::detail::kernels_for<Real>(la::isa_level::automatic), job, partials(), 0, row, scores);
  }
};

}  // namespace

// Scratch that is enough for a stream's most keys is enough for fewer.
TEST(KeyParts, HoldAllKeysAndAreNeverMoreForFewer) {
  for (index_t keys = 0; keys < 70000; ++keys) {
    // A few more keys than the number of parts was chosen for: some are near to one query and far from another.
    for (const index_t more : {0, 15, 30}) {
      ASSERT_EQ(keys_per_part(keys + more, num_parts_of(keys)) % row_multiple, 0) << keys;
      ASSERT_GE(num_parts_of(keys) * keys_per_part(keys + more, num_parts_of(keys)), keys + more);
    }
    ASSERT_LE(num_parts_of(keys), num_parts_of(keys + 1)) << keys;
  }
  EXPECT_EQ(num_parts_of(0), 1);
  EXPECT_EQ(num_parts_of(index_t{1} << 41), la::detail::most_parts);
}

TEST(KeyParts, AreEvenAndOfAThousandKeysOrMore) {
  EXPECT_EQ(num_parts_of(2047), 1);
  EXPECT_EQ(num_parts_of(2048), 2);
  EXPECT_EQ(keys_per_part(2048, 2), 1024);
  EXPECT_EQ(num_parts_of(4112), 4);
  EXPECT_EQ(keys_per_part(4112, 4), 1040);
}

TEST(PartialResults, AreCompleteOnce) {
  call<float> c(1);
  partial_results<float> partials = c.partials();
  partials.begin();
  EXPECT_FALSE(partials.complete(3, 8));
  EXPECT_FALSE(partials.complete(4, 8));
  EXPECT_TRUE(partials.complete(1, 8));
  partials.begin();
  EXPECT_TRUE(partials.complete(8, 8));
}

// Part p of (token, head) has the max `level * p`, the sum p + 1 and the values 2 p + d: in all 2^(level p) (p + 1) and so on.
template <class Real>
void expect_joined(Real level, const std::vector<float>& sink_logits, double tolerance) {
  constexpr index_t num_parts = 5;
  call<Real> c(num_parts);
  if (!sink_logits.empty()) c.job.sink_logits = sink_logits.data();
  const partial_results<Real> partials = c.partials();
  for (index_t row = 0; row < num_queries * num_parts * group; ++row) {
    const Real p = static_cast<Real>(row / (num_queries * group));
    partials.max(row) = level * p;
    partials.sum(row) = p + 1;
    for (index_t d = 0; d < padded_v_dim; ++d) partials.output(row, padded_v_dim)[d] = 2 * p + static_cast<Real>(d);
  }
  c.join();
  for (index_t token = 0; token < num_queries; ++token) {
    for (index_t head = 0; head < group; ++head) {
      const std::size_t place = static_cast<std::size_t>(token * group + head);
      double sum = 0;
      for (int p = 0; p < num_parts; ++p) sum += std::exp2(static_cast<double>(level) * p) * (p + 1);
      EXPECT_NEAR(c.lse[place], std::log(sum), 1e-6 + 0x1p-24 * std::fabs(std::log(sum)));
      if (!sink_logits.empty()) sum += std::exp(static_cast<double>(sink_logits[static_cast<std::size_t>(head)]));
      for (int d = 0; d < v_head_dim; ++d) {
        double expected = 0;
        for (int p = 0; p < num_parts; ++p) expected += std::exp2(static_cast<double>(level) * p) * (2 * p + d) / sum;
        EXPECT_NEAR(static_cast<double>(c.out[place * v_head_dim + static_cast<std::size_t>(d)]), expected,
                    tolerance * expected)
            << "token " << token << ", head " << head << ", dim " << d;
      }
    }
  }
}

TEST(JoinParts, WeighsEachByItsShare) {
  for (const int level : {0, 1, -1, 40, -40}) {
    SCOPED_TRACE(level);
    expect_joined<float>(static_cast<float>(level), {}, 1e-6);
    expect_joined<double>(level, {}, 1e-14);
  }
}

TEST(JoinParts, CountsLearnedSinksIn) {
  for (const int level : {1, -1}) {
    expect_joined<float>(static_cast<float>(level), {2, -3, 5}, 1e-6);
    expect_joined<double>(level, {2, -3, 5}, 1e-14);
  }
}

// What softmax gives for no keys.
TEST(JoinParts, TakesNothingFromEmptyParts) {
  call<float> c(2);
  const partial_results<float> partials = c.partials();
  for (index_t row = 0; row < 2 * num_queries * group; ++row) {
    const bool empty = row / (num_queries * group) == 1 || row / group % num_queries == 0;
    partials.max(row) = empty ? la::detail::hidden_score : -5.0f;
    partials.sum(row) = empty ? 0.0f : 2.0f;
    for (index_t d = 0; d < padded_v_dim; ++d) partials.output(row, padded_v_dim)[d] = empty ? 0.0f : 6.0f;
  }
  c.out.assign(c.out.size(), -1.0f);
  c.join();
  EXPECT_EQ(c.out[v_head_dim], 0);
  EXPECT_EQ(c.lse[1], -HUGE_VALF);
  EXPECT_EQ(c.out[5 * v_head_dim], 3);
  EXPECT_NEAR(c.lse[5], std::log(2.0 / 32), 1e-6);
}
