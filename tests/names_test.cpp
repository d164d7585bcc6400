// A program's own names are not the library's: what it calls `attend` is not called by a library that is given its types.
#include <lambda_attention/lambda_attention.hpp>
#include <lambda_attention/reference.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

// Argument-dependent lookup finds these for every unqualified call with a type of this namespace, or a template over one.
namespace engine {

template <class... T>
void append(T&&...) = delete;
template <class... T>
void attend(T&&...) = delete;
template <class... T>
void attend_partial(T&&...) = delete;
template <class... T>
void attend_row(T&&...) = delete;
template <class... T>
void attend_runs(T&&...) = delete;
template <class... T>
void check_streams(T&&...) = delete;
template <class... T>
void erase(const T&...) = delete;
template <class... T>
void erase_part(const T&...) = delete;
template <class T>
void limits_of(T&&) = delete;
template <class... T>
void merge(T&&...) = delete;
template <class T>
void number(T&&) = delete;
template <class... T>
void numbers(T&&...) = delete;
template <class... T>
void run_jobs(T&&...) = delete;
template <class... T>
void run_one(T&&...) = delete;

struct brain_float {
  std::uint16_t bits = 0x3f80;  // 1
};
struct no_position : la::position_encoding {
  la::position_data data() const { return {}; }
};
struct rows_of_float {
  using compute_type = float;
  static constexpr la::row_format format = la::row_format::custom;
  static constexpr index_t row_bytes(index_t dim) { return dim * static_cast<index_t>(sizeof(float)); }
  static float encode(const float* row, index_t dim, void* stored) {
    for (index_t d = 0; d < dim; ++d) static_cast<float*>(stored)[d] = row[d];
    return 1;
  }
  static void decode(const void* stored, float, index_t dim, float* row) {
    for (index_t d = 0; d < dim; ++d) row[d] = static_cast<const float*>(stored)[d];
  }
};
struct caller {
  index_t num_workers() const { return 1; }
  template <class F>
  void run(index_t num_tasks, const F& f) const {
    for (index_t task = 0; task < num_tasks; ++task) f(task, 0);
  }
};

}  // namespace engine

template <>
struct lambda_attention::element_traits<engine::brain_float> {
  static constexpr auto kind = element_kind::bf16;
};

namespace {

constexpr index_t tokens = 4, dim = 8;

struct call {
  std::vector<engine::brain_float> ones = std::vector<engine::brain_float>(tokens * dim);
  std::vector<float> result = std::vector<float>(tokens * dim), of_lse = std::vector<float>(tokens);
  la::tensor_view<engine::brain_float> in = la::token_major(ones.data(), tokens, 1, dim);
  la::tensor_view<float> out = la::token_major(result.data(), tokens, 1, dim);
  la::partial_result<float, float> part{out, la::token_major(of_lse.data(), tokens, 1, 1)};
  la::lambda_shape shape = la::lm_infinite(1, 8);
  engine::no_position position;
  engine::caller executor;
  la::attention_options options;

  // The mean of ones, in floats; zeros from then on, so that what the next call does not compute shows.
  void expect_ones() {
    for (float& x : result) EXPECT_FLOAT_EQ(std::exchange(x, 0.0f), 1);
  }
};

}  // namespace

TEST(Names, OfAWholeSequence) {
  call c;
  la::attend(c.in, c.in, c.in, c.shape, c.position, c.out, c.options, c.executor);
  c.expect_ones();
  la::attend_partial(c.in, c.in, c.in, c.shape, c.position, {0, tokens}, c.part, c.options, c.executor);
  c.expect_ones();
}

TEST(Names, OfAStream) {
  call c;
  la::kv_cache<engine::rows_of_float, engine::no_position> cache(c.shape, c.position, 1, dim, dim);
  la::attend(c.in, c.in, c.in, cache, c.out, c.options, c.executor);
  c.expect_ones();
  const la::stream_step step{c.in, c.in, c.in, &cache, c.out};
  la::attend(&step, 1, c.options, c.executor);
  c.expect_ones();
  la::append(c.in, c.in, cache);
  la::attend(c.in, cache, c.out, c.options, c.executor);
  c.expect_ones();
  la::attend_partial(c.in, cache, {0, 3 * tokens}, c.part, c.options, c.executor);
  c.expect_ones();
}

TEST(Names, OfRuns) {
  call c;
  const la::key_run run{0, c.in, c.in};
  la::attend(la::query_run{0, c.in}, &run, 1, c.shape, c.position, c.out, c.options, c.executor);
  c.expect_ones();
  la::attend_partial(la::query_run{0, c.in}, &run, 1, c.shape, c.position, {0, tokens}, c.part, c.options, c.executor);
  la::merge(&c.part, 1, c.part);
  c.expect_ones();
}

TEST(Names, OfAMiddle) {
  call c;
  la::middle_store<engine::rows_of_float, engine::no_position> store({0, 0, 0}, c.position, 1, dim,
                                                                     dim);  // all is in the middle
  la::append(c.in, c.in, store);
  la::attend_top_k(c.in, store, {2, 9}, c.part, c.options, c.executor);
  c.expect_ones();
}

TEST(Names, OfTheReference) {
  call c;
  std::vector<double> out(tokens * dim);
  la::reference::attend(c.in, c.in, c.in, c.shape, c.position, la::token_major(out.data(), tokens, 1, dim));
  for (const double x : out) EXPECT_EQ(x, 1);
}
