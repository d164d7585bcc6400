// Sizes that hurt: no token and one, windows and sinks of any size, dims of 1 and 512, positions and indices near the end of
// int64, rows whose offsets do not fit in 32 bits, and extents that memory does not have. Numbers that hurt are in
// hostile_numbers_test.cpp.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/exact_logits.hpp>
#include <support/expected_rows.hpp>

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "../refusal.hpp"

namespace {

using namespace support;
using namespace lambda_attention;

constexpr int seed = 19;

// Keys and values that every storage keeps exactly, whatever their dim: whole numbers over 64, of which the first is 127.
void make_exact(generator& random, const tensor_view<float>& rows) {
  for (index_t t = 0; t < rows.tokens; ++t)
    for (index_t h = 0; h < rows.heads; ++h)
      for (index_t d = 0; d < rows.dim; ++d)
        rows.row(t, h)[d] = static_cast<float>(d == 0 ? 127 : draw(random, -127, 127)) / 64;
}

inputs<> exact_inputs(generator& random, const extents& e) {
  inputs<> in = random_inputs(random, e);
  make_exact(random, in.k.view());
  make_exact(random, in.v.view());
  return in;
}

template <class Storage, class Position>
tensor<typename Storage::compute_type> in_steps(const inputs<>& in, const lambda_shape& shape, const Position& position,
                                                index_t step, const kv_cache_options& cache_options,
                                                const attention_options& options) {
  auto out = output_for<typename Storage::compute_type>(in);
  auto cache = cache_for<Storage>(in, shape, position, cache_options);
  for (index_t i = 0; i < in.q.view().tokens; i += step)
    attend_part(in, i, std::min(step, in.q.view().tokens - i), cache, out, options);
  return out;
}

// Over all keys as one run, which knows no bound.
template <class Position>
tensor<float> token_by_token(const inputs<>& in, const lambda_shape& shape, const Position& position,
                             const attention_options& options) {
  tensor<float> out = output_for<float>(in);
  const key_run run{0, in.k.view(), in.v.view()};
  for (index_t i = 0; i < in.q.view().tokens; ++i)
    attend(query_run{i, in.q.view().slice(i, 1)}, &run, 1, shape, position, out.view().slice(i, 1), options);
  return out;
}

// Whole sequences, tokens over a run, and streams in steps, of inputs that every format has; `kept`: rows stay as they are in the cache.
template <class Position>
void expect_formula(generator& random, const inputs<>& in, const lambda_shape& shape, const Position& position,
                    bool kept, index_t first_position, const std::vector<index_t>& steps) {
  const double sigma =
      sigma_of(random, in.q, in.k, shape, position, 1 / std::sqrt(static_cast<double>(in.k.view().dim)), 200);
  const expected_rows expected(random, in.q, in.k, in.v, shape, position);
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    attention_options options, of_stream;
    options.isa = of_stream.isa = isa;
    options.first_position = first_position;
    if (has_own_kernels(isa, row_format::f32)) {
      EXPECT_LE(expected.nmse(attend_sequence<float>(in, shape, position, options)), arithmetic_bound<float>(sigma));
      EXPECT_LE(expected.nmse(attend_sequence<double>(in, shape, position, options)), arithmetic_bound<double>());
      EXPECT_LE(expected.nmse(token_by_token(in, shape, position, options)), arithmetic_bound<float>(sigma));
    }
    if (shape.window > 1000 || shape.num_sinks > 1000) continue;
    for_each_storage([&](auto storage, const char* name) {
      using storage_type = decltype(storage);
      if (!has_own_kernels(isa, storage_type::format)) return;
      if (!kept && squared_rounding(storage_type::format) > 0) return;
      for (const index_t step : steps) {
        const auto out = in_steps<storage_type>(in, shape, position, step, {step, 0, first_position}, of_stream);
        EXPECT_LE(expected.nmse(out), stored_bound<storage_type>(isa, sigma)) << name << ", steps of " << step;
      }
    });
  }
}

class hostile_sizes : public testing::TestWithParam<index_t> {
 protected:
  static index_t group() { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(groups, hostile_sizes, testing::Values<index_t>(1, 4, 8));

TEST_P(hostile_sizes, dims_from_1_to_512_are_taken) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  for (const index_t head_dim : {1, 2, 3, 511, 512}) {
    for (const index_t v_head_dim : {1, 2, 511, 512}) {
      const extents e = {20, 1, group(), head_dim, v_head_dim};
      SCOPED_TRACE("head_dim " + std::to_string(head_dim) + ", v_head_dim " + std::to_string(v_head_dim));
      const inputs<> in = exact_inputs(random, e);
      const lambda_shape shape = {2, 9, 5};
      expect_formula(random, in, shape, none(), true, 0, {1, 20});
      if (head_dim == 1) continue;  // no pair to be turned
      with_encoding(encoding::rope_half_split, e.heads(), head_dim, [&](const auto& position) {
        expect_formula(random, in, shape, position, false, 0, {1, 20});
      });
    }
  }
}

// Steps of 0 tokens and 1, where beyond_test has chunks.
TEST_P(hostile_sizes, few_tokens_and_shapes_of_any_size_are_the_formula) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  constexpr index_t last_but_one = unlimited - 1;
  for (const index_t n : {0, 1, 2, 17}) {
    const extents e = {n, 1, group(), 16, 16};
    const inputs<> in = exact_inputs(random, e);
    for (const index_t num_sinks : {index_t{0}, index_t{1}, n, n + 3, last_but_one, unlimited}) {
      for (const index_t window : {index_t{0}, index_t{1}, n, n + 1, index_t{1000}, last_but_one, unlimited}) {
        for (const index_t limit : {index_t{0}, index_t{1}, last_but_one, unlimited}) {
          const lambda_shape shape = {num_sinks, window, limit};
          SCOPED_TRACE(std::to_string(n) + " tokens, " + to_string(shape));
          const index_t first_position = limit == 1 ? index_t{1} << 62 : 0;
          expect_formula(random, in, shape, rope(16), false, first_position, {1});
          if (limit == unlimited) expect_formula(random, in, shape, none(), true, 0, {1, 3});
        }
      }
    }
  }
}

// To rows of the same extents.
template <class T>
void copy(const tensor_view<const T>& source, const tensor_view<T>& destination) {
  for (index_t t = 0; t < source.tokens; ++t)
    for (index_t h = 0; h < source.heads; ++h) std::copy_n(source.row(t, h), source.dim, destination.row(t, h));
}

// Memory that is reserved and not there: rows lie so far apart that offsets of elements do not fit in 32 bits.
template <class T>
class far_apart {
 public:
  // Zeros; no view where there is no room for so many addresses.
  far_apart(index_t tokens, index_t heads, index_t dim, index_t token_stride, index_t head_stride)
      : view_(nullptr, tokens, heads, dim, token_stride, head_stride),
        bytes_(static_cast<std::size_t>((tokens - 1) * token_stride + (heads - 1) * head_stride + dim) * sizeof(T)) {
    void* const memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    madvise(memory, bytes_, MADV_NOHUGEPAGE);
    view_.data = static_cast<T*>(memory);
  }
  // The rows of a dense tensor.
  far_apart(const tensor<T>& source, index_t token_stride, index_t head_stride)
      : far_apart(source.view().tokens, source.view().heads, source.view().dim, token_stride, head_stride) {
    if (is_mapped()) copy(source.view(), view_);
  }
  far_apart(const far_apart&) = delete;
  far_apart& operator=(const far_apart&) = delete;
  ~far_apart() {
    if (is_mapped()) munmap(view_.data, bytes_);
  }

  bool is_mapped() const { return view_.data != nullptr; }
  const tensor_view<T>& view() const { return view_; }

 private:
  tensor_view<T> view_;
  std::size_t bytes_;
};

// The third token, or the second head, is past 2^32 elements and 2^33 bytes; nothing else of the address is zero.
struct distances {
  const char* name;
  index_t token_stride, head_stride;
};
constexpr index_t far_away = (index_t{1} << 32) + 48;
constexpr distances all_distances[] = {{"tokens far apart", far_away, 32}, {"heads far apart", 32, far_away}};

constexpr extents far_extents = {20, 2, 2, 32, 32};  // more tokens than are taken without tiles

// What a call has to read and to write, dense and far apart.
template <class T>
struct far_call {
  inputs<T> in;
  tensor<T> out;
  tensor<float> lse;
  far_apart<T> q, k, v, far_out;
  far_apart<float> far_lse;

  far_call(generator& random, const distances& d)
      : in(random_inputs<T>(random, far_extents)),
        out(output_for<T>(in)),
        lse(far_extents.tokens, far_extents.heads(), 1),
        q(in.q, d.token_stride, d.head_stride),
        k(in.k, d.token_stride, d.head_stride),
        v(in.v, d.token_stride, d.head_stride),
        far_out(out, d.token_stride, d.head_stride),
        far_lse(lse, d.token_stride, d.head_stride) {}

  bool is_mapped() const {
    return q.is_mapped() && k.is_mapped() && v.is_mapped() && far_out.is_mapped() && far_lse.is_mapped();
  }

  // attend(q, k, v, out, lse) on both: the same bits.
  template <class Attend>
  void expect_alike(Attend&& attend) {
    for_each_element(far_out.view(), [](T& x) { x = element<T>(-1); });
    for_each_element(far_lse.view(), [](float& x) { x = -1; });
    attend(in.q.view(), in.k.view(), in.v.view(), out.view(), lse.view());
    attend(tensor_view<const T>(q.view()), tensor_view<const T>(k.view()), tensor_view<const T>(v.view()),
           far_out.view(), far_lse.view());
    EXPECT_TRUE(same_bits(tensor_view<const T>(far_out.view()), tensor_view<const T>(out.view())));
    EXPECT_TRUE(same_bits(tensor_view<const float>(far_lse.view()), tensor_view<const float>(lse.view())));
  }
};

template <class T>
class rows_far_apart : public testing::Test {};
using far_types = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(rows_far_apart, far_types);

TYPED_TEST(rows_far_apart, are_the_same_rows) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  using storage = std::conditional_t<std::is_same_v<TypeParam, double>, f64, f32>;
  const lambda_shape shape = {2, 9, 5};
  const rope position(far_extents.head_dim);
  constexpr index_t n = far_extents.tokens;
  for (const distances& d : all_distances) {
    generator random(seed);
    far_call<TypeParam> call(random, d);
    if (!call.is_mapped()) GTEST_SKIP() << "no room for so many addresses";
    for (const isa_level isa : isa_levels()) {
      SCOPED_TRACE(std::string(d.name) + ", " + name_of(isa));
      attention_options options;
      options.isa = isa;
      call.expect_alike([&](const auto& q, const auto& k, const auto& v, const auto& out, const auto& lse) {
        options.lse = lse;
        attend(q, k, v, shape, position, out, options);
      });
      for (const index_t step : {index_t{1}, n}) {
        call.expect_alike([&](const auto& q, const auto& k, const auto& v, const auto& out, const auto& lse) {
          kv_cache<storage, rope> cache(shape, position, far_extents.kv_heads, far_extents.head_dim,
                                        far_extents.v_head_dim, {step});
          for (index_t i = 0; i < n; i += step) {
            options.lse = lse.slice(i, step);
            attend(q.slice(i, step), k.slice(i, step), v.slice(i, step), cache, out.slice(i, step), options);
          }
        });
        // Without rotation rows are read where they lie.
        call.expect_alike([&](const auto& q, const auto& k, const auto& v, const auto& out, const auto& lse) {
          const std::vector runs = {key_run{7, k.slice(7, n - 7), v.slice(7, n - 7)},
                                    key_run{0, k.slice(0, 7), v.slice(0, 7)}};
          for (index_t i = 0; i < n; i += step) {
            options.lse = lse.slice(i, step);
            attend(query_run{i, q.slice(i, step)}, runs.data(), 2, shape, none(), out.slice(i, step), options);
          }
        });
      }
      options.lse = {};
      call.expect_alike([&](const auto& q, const auto& k, const auto& v, const auto& out, const auto& lse) {
        tensor<TypeParam> other(n, far_extents.heads(), far_extents.v_head_dim);
        tensor<float> other_lse(n, far_extents.heads(), 1);
        const partial_result result{out, lse}, rest{other.view(), other_lse.view()};
        attend_partial(q, k, v, shape, position, {0, 4}, rest, options);
        attend_partial(q, k, v, shape, position, {4, unlimited}, result, options);
        merge(result, rest, result);
      });
      call.expect_alike([&](const auto& q, const auto& k, const auto& v, const auto& out, const auto& lse) {
        middle_store<storage, rope> store(shape, position, far_extents.kv_heads, far_extents.head_dim,
                                          far_extents.v_head_dim);
        append(k, v, store, isa);
        attend_top_k(q, store, {3, 9}, partial_result{out, lse}, options);
      });
    }
  }
}

// The last tokens that a stream may have: so many come at once, all of them one row of memory.
TEST(streams_without_end, end_at_2_to_the_62) {
  constexpr index_t dim = 16, before = (index_t{1} << 62) - 200;
  std::vector<float> row(dim, 0.5f), outputs(100 * dim);
  const tensor_view<const float> all(row.data(), before, 1, dim, 0, dim);
  kv_cache<f32, rope> cache(lm_infinite(2, 8), rope(dim), 1, dim, dim, {100});
  append(all, all, cache);
  for (const index_t count : {1, 20, 79, 100}) {
    tensor_view<const float> some = all;
    some.tokens = count;
    std::fill(outputs.begin(), outputs.end(), -7.0f);
    attend(some, some, some, cache, token_major(outputs.data(), count, 1, dim));
    for (index_t i = 0; i < count * dim; ++i)
      ASSERT_NEAR(outputs[static_cast<std::size_t>(i)], 0.5, 1e-6) << count << " tokens";
  }
  EXPECT_EQ(cache.num_tokens(), index_t{1} << 62);
  tensor_view<const float> one = all;
  one.tokens = 1;
  EXPECT_THROW(append(one, one, cache), std::invalid_argument);
}

TEST(weights_far_apart, are_the_same_weights) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const lambda_shape shape = {2, 9, 5};
  for (const distances& d : all_distances) {
    generator random(seed);
    const inputs<> in = random_inputs(random, far_extents);
    auto cache = cache_for<f32>(in, shape, none());
    append(in.k.view(), in.v.view(), cache);
    tensor<float> out = output_for<float>(in);
    tensor<float> weights(3, far_extents.heads(), 11);
    for_each_element(weights.view(), [](float& x) { x = -1; });
    const far_apart<float> far(weights, d.token_stride, d.head_stride);
    if (!far.is_mapped()) GTEST_SKIP() << "no room for so many addresses";
    attention_options options;
    for (const tensor_view<float>& view : {weights.view(), far.view()}) {
      options.weights = view;
      attend(in.q.view().slice(17, 3), cache, out.view().slice(17, 3), options);
    }
    EXPECT_TRUE(same_bits(tensor_view<const float>(far.view()), tensor_view<const float>(weights.view()))) << d.name;
  }
}

// A run so long that its last rows are past 2^32 elements; of its rows, those that are seen have numbers.
template <class T>
void expect_end_of_long_run(index_t num_queries) {
  using real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  constexpr row_format format = std::is_same_v<T, bfloat16> ? row_format::bf16 : row_format::f32;
  constexpr index_t dim = 512, seen = 40, num_sinks = 2, num_keys = (index_t{1} << 32) / dim + 100;
  const lambda_shape shape = {num_sinks, 17, unlimited};
  generator random(seed);
  const inputs<T> in = random_inputs<T>(random, {seen, 1, 2, dim, dim});
  const far_apart<T> k(num_keys, 1, dim, dim, dim), v(num_keys, 1, dim, dim, dim);
  if (!k.is_mapped() || !v.is_mapped()) GTEST_SKIP() << "no room for so many addresses";
  const auto fill = [](const tensor<T>& rows, const tensor_view<T>& run) {
    copy(rows.view().slice(0, num_sinks), run.slice(0, num_sinks));
    copy(rows.view().slice(num_sinks, seen - num_sinks), run.slice(num_keys - seen + num_sinks, seen - num_sinks));
  };
  fill(in.k, k.view());
  fill(in.v, v.view());
  const key_run short_run{0, in.k.view(), in.v.view()};
  const key_run long_run{0, tensor_view<const T>(k.view()), tensor_view<const T>(v.view())};
  const auto q = in.q.view().slice(seen - num_queries, num_queries);
  for (const isa_level isa : isa_levels()) {
    attention_options options;
    options.isa = isa;
    tensor<real> expected(num_queries, 2, dim), actual(num_queries, 2, dim);
    attend(query_run{seen - num_queries, q}, &short_run, 1, shape, none(), expected.view(), options);
    attend(query_run{num_keys - num_queries, q}, &long_run, 1, shape, none(), actual.view(), options);
    const double bound =
        num_queries == 1 ? 0 : between_two(tensor_bound<real>(format, isa));  // tiles are cut elsewhere
    EXPECT_LE(nmse(actual.view(), expected.view()), bound) << num_queries << " queries, " << name_of(isa);
  }
}

TYPED_TEST(rows_far_apart, may_be_the_last_of_a_run) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  expect_end_of_long_run<TypeParam>(1);   // off the rows
  expect_end_of_long_run<TypeParam>(20);  // in tiles
}

// What checks_test does not spoil: everything but q, k, v and out.
TEST(extents_past_memory, are_refused_of_any_tensor) {
  constexpr index_t n = 3, heads = 2, dim = 16, huge = unlimited / 4;
  generator random(seed);
  const inputs<> in = random_inputs(random, {n, heads, 1, dim, dim});
  const tensor_view<const float> q = in.q.view(), k = in.k.view(), v = in.v.view();
  tensor<float> out(n, heads, dim), lse(n, heads, 1), weights(n, heads, n);
  for_each_element(out.view(), [](float& x) { x = 5; });
  const auto too_large = [](tensor_view<float> view) {
    view.token_stride = huge;
    return view;
  };
  const auto too_large_to_read = [](tensor_view<const float> view) {
    view.token_stride = huge;
    return view;
  };
  const auto said = [](const std::string& where, const std::string& name, index_t last_dim, index_t head_stride) {
    return where + ": expected " + name + " to end within 2^63 bytes, got [3, 2, " + std::to_string(last_dim) +
           "] with strides " + std::to_string(huge) + ", " + std::to_string(head_stride);
  };
  const lambda_shape shape = lm_infinite(1, 2);
  const lambda_attention::none position;
  kv_cache<f32, lambda_attention::none> cache(shape, position, heads, dim, dim);
  append(k, v, cache);
  middle_store<f32, lambda_attention::none> store(shape, position, heads, dim, dim);
  append(k, v, store);

  attention_options options;
  options.lse = too_large(lse.view());
  EXPECT_EQ(refusal([&] { attend(q, k, v, shape, position, out.view(), options); }),
            said("attend", "options.lse", 1, 1));
  EXPECT_EQ(refusal([&] { attend(q, cache, out.view(), options); }), said("attend", "options.lse", 1, 1));
  options.lse = {};
  options.weights = too_large(weights.view());
  EXPECT_EQ(refusal([&] { attend(q, cache, out.view(), options); }), said("attend", "options.weights", n, n));

  const auto over_runs = [&](const auto& queries, const tensor_view<const float>& keys,
                             const tensor_view<const float>& values, index_t bad) {
    key_run<const float, const float> runs[] = {key_run{0, k, v}, key_run{n, k, v}};
    runs[bad].k = keys;
    runs[bad].v = values;
    return refusal([&] { attend(query_run{0, queries}, runs, 2, shape, position, out.view()); });
  };
  EXPECT_EQ(over_runs(q, too_large_to_read(k), v, 0), said("attend", "k", dim, dim));
  EXPECT_EQ(over_runs(q, k, too_large_to_read(v), 0), said("attend", "v", dim, dim));
  EXPECT_EQ(over_runs(q, too_large_to_read(k), v, 1), said("attend", "runs[1].k", dim, dim));
  EXPECT_EQ(over_runs(q, k, too_large_to_read(v), 1), said("attend", "runs[1].v", dim, dim));
  EXPECT_EQ(over_runs(too_large_to_read(q), k, v, 0), said("attend", "q", dim, dim));

  const partial_result bad_lse{out.view(), too_large(lse.view())}, bad_out{too_large(out.view()), lse.view()},
      result{out.view(), lse.view()};
  const auto partial = [&](const auto& r) {
    return refusal([&] { attend_partial(q, k, v, shape, position, {0, 2}, r); });
  };
  EXPECT_EQ(partial(bad_lse), said("attend_partial", "result.lse", 1, 1));
  EXPECT_EQ(partial(bad_out), said("attend_partial", "out", dim, dim));
  EXPECT_EQ(refusal([&] { merge(bad_out, result, result); }), said("merge", "out of a part", dim, dim));
  EXPECT_EQ(refusal([&] { merge(bad_lse, result, result); }), said("merge", "lse of a part", 1, 1));
  EXPECT_EQ(refusal([&] { merge(result, result, bad_out); }), said("merge", "result.out", dim, dim));
  EXPECT_EQ(refusal([&] { merge(result, result, bad_lse); }), said("merge", "result.lse", 1, 1));

  EXPECT_EQ(refusal([&] { append(too_large_to_read(k), v, store); }), said("append", "k", dim, dim));
  EXPECT_EQ(refusal([&] { append(k, too_large_to_read(v), cache); }), said("append", "v", dim, dim));
  EXPECT_EQ(refusal([&] { attend_top_k(q, store, {1, 2}, bad_out); }), said("attend_top_k", "out", dim, dim));
  EXPECT_EQ(cache.num_tokens(), n);
  EXPECT_EQ(store.num_tokens(), n);
  for_each_element(out.view(), [](float x) { EXPECT_EQ(x, 5); });
}

}  // namespace
