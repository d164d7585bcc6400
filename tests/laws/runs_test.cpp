// Runs of the caller's == the whole sequence, however it is cut, laid out and rotated.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/reversed_executor.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// A row after a rotation, by the definition of rotation_data: exact but for the rounding to T at the end.
template <class T>
void rotate(const rotation_data& rotation, index_t position, T* row) {
  for (index_t p = 0; p < rotation.num_pairs; ++p) {
    const bool split = rotation.layout == pair_layout::half_split;
    T& a = row[split ? p : 2 * p];
    T& b = row[split ? p + rotation.num_pairs : 2 * p + 1];
    const std::uint64_t turns = static_cast<std::uint64_t>(position) * rotation.turns[p];
    const long double angle = static_cast<long double>(turns) * (6.283185307179586476925286766559005768L * 0x1p-64L);
    const long double x = reference::number(a), y = reference::number(b);
    a = element<T>(static_cast<double>((x * std::cos(angle) - y * std::sin(angle)) * rotation.factor));
    b = element<T>(static_cast<double>((y * std::cos(angle) + x * std::sin(angle)) * rotation.factor));
  }
}

// Rows [first, last) of a tensor as a caller may have them.
template <class T>
tensor<T> rows_of(const tensor<T>& all, index_t first, index_t last, layout l, row_rotation rotation,
                  const rotation_data& data, index_t first_position) {
  const tensor_view<const T> source = all.view().slice(first, last - first);
  tensor<T> rows(source.tokens, source.heads, source.dim, l);
  for (index_t t = 0; t < source.tokens; ++t)
    for (index_t h = 0; h < source.heads; ++h) {
      std::copy_n(source.row(t, h), source.dim, rows.view().row(t, h));
      if (rotation != row_rotation::none)
        rotate(data, rotation == row_rotation::to_zero ? 0 : first_position + first + t, rows.view().row(t, h));
    }
  return rows;
}

// Whether some query of [first, last) sees a key.
bool seen(const lambda_shape& shape, index_range queries, index_t key) {
  for (index_t query = queries.first; query < queries.last; ++query)
    if (shape.visible(query, key)) return true;
  return false;
}

template <class T>
struct owned_run {
  index_t first;
  tensor<T> k;
  tensor<T> v;
  row_rotation rotation;
};

// How the keys of a call are rotated: all the same way, or each run as chance has it.
enum class rotations { all_to_position, any };

template <class T>
class random_runs {
 public:
  random_runs(generator& random, const inputs<T>& in, const lambda_shape& shape, index_range queries, rotations which,
              const rotation_data& rotation, index_t first_position) {
    const index_t num_keys = in.k.view().tokens;
    for (index_t first = 0, last; first < num_keys; first = last) {
      last = std::min(num_keys, first + (draw(random, 0, 1) == 0 ? draw(random, 1, 4) : draw(random, 5, 60)));
      bool needed = draw(random, 0, 1) == 0;
      for (index_t key = first; key < last; ++key) needed = needed || seen(shape, queries, key);
      if (needed) add(random, in, first, last, which, rotation, first_position);
    }
    add(random, in, 0, 0, which, rotation, first_position);  // a run of nothing
    for (owned_run<T>& run : runs_)
      for (index_t t = 0; t < run.k.view().tokens; ++t)
        if (!seen(shape, queries, run.first + t)) poison(run, t);
    std::shuffle(runs_.begin(), runs_.end(), random);
    for (owned_run<T>& run : runs_) views_.push_back({run.first, run.k.view(), run.v.view(), run.rotation});
  }

  const key_run<const T, const T>* data() const { return views_.data(); }
  index_t size() const { return static_cast<index_t>(views_.size()); }

 private:
  void add(generator& random, const inputs<T>& in, index_t first, index_t last, rotations which,
           const rotation_data& data, index_t first_position) {
    const row_rotation rotation =
        which == rotations::all_to_position ? row_rotation::to_position : static_cast<row_rotation>(draw(random, 0, 2));
    const layout of_k = layouts[draw(random, 0, 2)], of_v = layouts[draw(random, 0, 2)];
    runs_.push_back({first, rows_of(in.k, first, last, of_k, rotation, data, first_position),
                     rows_of(in.v, first, last, of_v, row_rotation::none, data, first_position), rotation});
  }
  // What nobody sees is not read.
  static void poison(owned_run<T>& run, index_t t) {
    const T nan = element<T>(std::numeric_limits<double>::quiet_NaN());
    for_each_element(run.k.view().slice(t, 1), [&](T& x) { x = nan; });
    for_each_element(run.v.view().slice(t, 1), [&](T& x) { x = nan; });
  }

  std::vector<owned_run<T>> runs_;
  std::vector<key_run<const T, const T>> views_;
};

class runs_law : public law {};
INSTANTIATE_TEST_SUITE_P(laws, runs_law, testing::Combine(testing::ValuesIn(encodings), testing::Values<index_t>(1, 4)),
                         name_of_case);

constexpr lambda_shape shapes[] = {lm_infinite(3, 40),   {20, 60, 7},   {5, 1, 0},     {6, 0, 3},
                                   streaming_llm(4, 50), full_causal(), {0, 200, 150}, {9, 30, 90}};
constexpr index_range queries_of_calls[] = {{149, 150}, {120, 124}, {2, 5},    {37, 42},
                                            {60, 150},  {150, 150}, {95, 107}, {50, 58}};

// Rows that were rotated have been rounded to T after that: keys, and queries.
template <class T>
double runs_bound(row_format format, isa_level isa) {
  const double rotated = rounding_bound(squared_rounding(format), 0, 2, 1);
  return arithmetic_bound<std::conditional_t<std::is_same_v<T, double>, double, float>>() +
         pairs_bound(format, isa, 2, 1) + rotated;
}

template <class T>
void of_a_sequence(encoding encoded, const extents& e, row_format format, index_t first_position, rotations which) {
  using real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  constexpr int seed = 11;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const inputs<T> in = random_inputs<T>(random, e);
  with_encoding(encoded, e.heads(), e.head_dim, [&](const auto& position) {
    const rotation_data rotation = position.data().rotation;
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      attention_options options;
      options.first_position = first_position;
      options.soft_cap = 20;
      const tensor<double> whole = attend_sequence<double>(in, shape, position, options);
      for (const isa_level isa : isa_levels()) {
        if (!has_own_kernels(isa, format)) continue;
        SCOPED_TRACE(name_of(isa));
        error_sum error;  // of all calls: what roundings leave in one row of one head is a matter of chance
        for (const index_range& queries : queries_of_calls) {
          SCOPED_TRACE("queries from " + std::to_string(queries.first));
          options.isa = isa;
          const random_runs<T> runs(random, in, shape, queries, which, rotation, first_position);
          const row_rotation rotated = draw(random, 0, 1) == 0 ? row_rotation::none : row_rotation::to_position;
          const tensor<T> q =
              rows_of(in.q, queries.first, queries.last, layout::padded, rotated, rotation, first_position);
          tensor<real> out(queries.size(), e.heads(), e.v_head_dim), again = out;
          attend(query_run{queries.first, q.view(), rotated}, runs.data(), runs.size(), shape, position, out.view(),
                 options);
          add_errors(out.view(), whole.view().slice(queries.first, queries.size()), error);
          attend(query_run{queries.first, q.view(), rotated}, runs.data(), runs.size(), shape, position, again.view(),
                 options, reversed_executor{});
          EXPECT_TRUE(same_bits(out.view(), again.view()));
        }
        EXPECT_LE(error.nmse(), runs_bound<T>(format, isa));
      }
    }
  });
}

// Rows that end where their numbers do not are copied; of the others, those that are as the kernels want them are read where
// they lie when there are few queries.
TEST_P(runs_law, are_the_sequence) {
  of_a_sequence<float>(encoding_under_test(), {150, 2, group()}, row_format::f32, 0, rotations::any);
  of_a_sequence<float>(encoding_under_test(), {150, 2, group(), 32, 48}, row_format::f32, 1000, rotations::any);
}
TEST_P(runs_law, are_the_sequence_where_an_engine_has_rotated_all) {
  for (const index_t first_position : {index_t{0}, index_t{1} << 40}) {
    of_a_sequence<float>(encoding_under_test(), {150, 1, group(), 32, 32}, row_format::f32, first_position,
                         rotations::all_to_position);
    of_a_sequence<bfloat16>(encoding_under_test(), {150, 1, group(), 32, 64}, row_format::bf16, first_position,
                            rotations::all_to_position);
  }
}
TEST_P(runs_law, hold_of_any_element) {
  of_a_sequence<bfloat16>(encoding_under_test(), {150, 1, group(), 32, 32}, row_format::bf16, 0, rotations::any);
  of_a_sequence<half>(encoding_under_test(), {150, 1, group(), 16, 32}, row_format::f16, 0, rotations::any);
  of_a_sequence<double>(encoding_under_test(), {150, 1, group(), 16, 16}, row_format::f64, 0, rotations::any);
}

// So many keys that workers share those of a token, with sinks that each of them turns back for itself: in pages and in one
// long run, which are read in other ways.
TEST_P(runs_law, leave_every_bit_to_workers_that_share_keys) {
  constexpr int seed = 19;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {3200, 1, group(), 32, 32};
  const inputs<bfloat16> in = random_inputs<bfloat16>(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    const rotation_data rotation = position.data().rotation;
    for (const lambda_shape& shape : {lm_infinite(5, 3000), streaming_llm(5, 3000)}) {
      SCOPED_TRACE(to_string(shape));
      for (const index_t page : {index_t{16}, e.tokens}) {
        std::vector<owned_run<bfloat16>> pages;
        std::vector<key_run<const bfloat16, const bfloat16>> runs;
        for (index_t first = 0, last; first < e.tokens; first = last) {
          last = std::min(e.tokens, first + page);
          const auto rows = [&](const tensor<bfloat16>& all, row_rotation rotated) {
            return rows_of(all, first, last, layout::head_major, rotated, rotation, 0);
          };
          pages.push_back({first, rows(in.k, row_rotation::to_position), rows(in.v, row_rotation::none),
                           row_rotation::to_position});
        }
        for (const owned_run<bfloat16>& run : pages)
          runs.push_back({run.first, run.k.view(), run.v.view(), run.rotation});
        const index_t first = e.tokens - 3;
        const auto queries = in.q.view().slice(first, 3);
        tensor<float> serial(3, e.heads(), e.v_head_dim), shared = serial, whole = serial;
        attend(query_run{first, queries}, runs.data(), static_cast<index_t>(runs.size()), shape, position,
               serial.view());
        attend(query_run{first, queries}, runs.data(), static_cast<index_t>(runs.size()), shape, position,
               shared.view(), {}, reversed_executor{});
        EXPECT_TRUE(same_bits(serial.view(), shared.view()));
        const key_run sequence{0, in.k.view(), in.v.view()};
        attend(query_run{first, queries}, &sequence, 1, shape, position, whole.view());
        EXPECT_LE(nmse(serial.view(), whole.view()),
                  between_two(runs_bound<bfloat16>(row_format::bf16, isa_level::automatic)));
      }
    }
  });
}

// Pairs of numbers are read as words: rows that begin between two are copied.
TEST_P(runs_law, may_begin_anywhere) {
  constexpr int seed = 23;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {100, 1, group(), 32, 32};
  const inputs<bfloat16> in = random_inputs<bfloat16>(random, e);
  std::vector<bfloat16> odd(static_cast<std::size_t>(e.tokens * e.head_dim + 1));
  for (index_t t = 0; t < e.tokens; ++t)
    std::copy_n(in.k.view().row(t, 0), e.head_dim, odd.data() + t * e.head_dim + 1);
  const tensor_view<const bfloat16> k = token_major(odd.data() + 1, e.tokens, 1, e.head_dim);
  for (const isa_level isa : isa_levels()) {
    attention_options options;
    options.isa = isa;
    tensor<float> out(2, e.heads(), e.v_head_dim), expected = out;
    const auto queries = in.q.view().slice(e.tokens - 2, 2);
    const key_run run{0, k, in.v.view()}, even{0, in.k.view(), in.v.view()};
    attend(query_run{e.tokens - 2, queries}, &run, 1, lm_infinite(3, 60), none(), out.view(), options);
    attend(query_run{e.tokens - 2, queries}, &even, 1, lm_infinite(3, 60), none(), expected.view(), options);
    EXPECT_LE(nmse(out.view(), expected.view()), between_two(runs_bound<bfloat16>(row_format::bf16, isa)));
  }
}

// Each worker has some of the keys, and none but those.
TEST_P(runs_law, of_parts_make_the_whole) {
  constexpr int seed = 13;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {150, 2, group(), 16, 32};
  const inputs<float> in = random_inputs<float>(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      const tensor<float> whole = attend_sequence<float>(in, shape, position);
      for (const index_range& queries : queries_of_calls) {
        tensor<float> out(queries.size(), e.heads(), e.v_head_dim), lse(queries.size(), e.heads(), 1), own_out = out,
                                                                                                       own_lse = lse;
        const partial_result sum{out.view(), lse.view()}, own{own_out.view(), own_lse.view()};
        merge(&own, 0, sum);
        const auto of_queries = in.q.view().slice(queries.first, queries.size());
        for (index_t first = 0, last; first < e.tokens; first = last) {
          last = std::min(e.tokens, first + draw(random, 1, 70));
          const key_run run{first, in.k.view().slice(first, last - first), in.v.view().slice(first, last - first)};
          attend_partial(query_run{queries.first, of_queries}, &run, 1, shape, position, {first, last}, own);
          merge(sum, own, sum);
        }
        EXPECT_LE(nmse(out.view(), whole.view().slice(queries.first, queries.size())),
                  between_two(arithmetic_bound<float>()));
      }
    }
  });
}

TEST_P(runs_law, have_the_lse_of_the_sequence) {
  constexpr int seed = 17;
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  const extents e = {150, 2, group()};
  const inputs<float> in = random_inputs<float>(random, e);
  with_encoding(encoding_under_test(), e.heads(), e.head_dim, [&](const auto& position) {
    for (const lambda_shape& shape : shapes) {
      SCOPED_TRACE(to_string(shape));
      tensor<float> lse(e.tokens, e.heads(), 1), lse_of_run = lse;
      attention_options options;
      options.lse = lse.view();
      const tensor<float> whole = attend_sequence<float>(in, shape, position, options);
      tensor<float> out(e.tokens, e.heads(), e.v_head_dim);
      options.lse = lse_of_run.view();
      const key_run run{0, in.k.view(), in.v.view()};
      attend(query_run{0, in.q.view()}, &run, 1, shape, position, out.view(), options);
      EXPECT_LE(nmse(out.view(), whole.view()), between_two(arithmetic_bound<float>()));
      for (index_t t = 0; t < e.tokens; ++t)
        for (index_t h = 0; h < e.heads(); ++h)
          EXPECT_NEAR(*lse_of_run.view().row(t, h), *lse.view().row(t, h), 240 * 0x1p-24);  // sums of up to 120 floats
    }
  });
}

// What README says of engines that rotate with angles in float, or in double. The newest token's window of 512, and 16 sinks.
template <class Angle>
void rotate_as_engines_do(index_t first, tensor<float>& rows) {
  const tensor_view<float> view = rows.view();
  for (index_t t = 0; t < view.tokens; ++t)
    for (index_t h = 0; h < view.heads; ++h)
      for (index_t p = 0, half = view.dim / 2; p < half; ++p) {
        const Angle frequency = 1 / std::pow(Angle(10000), Angle(2 * p) / Angle(view.dim));
        const Angle angle = Angle(first + t) * frequency;
        const float cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
        float &a = view.row(t, h)[p], &b = view.row(t, h)[p + half];
        const float x = a, y = b;
        a = x * cosine - y * sine;
        b = y * cosine + x * sine;
      }
}

template <class Angle>
double error_of_angles(index_t newest) {
  generator random(1);
  constexpr index_t heads = 8, dim = 128, window = 512, sinks = 16;
  tensor<float> q = random_tensor<float>(random, 1, heads, dim),
                k_sinks = random_tensor<float>(random, sinks, heads, dim),
                k = random_tensor<float>(random, window, heads, dim), out(1, heads, dim), expected = out;
  const tensor<float> v_sinks = random_tensor<float>(random, sinks, heads, dim),
                      v = random_tensor<float>(random, window, heads, dim);
  const index_t first = newest - window + 1;
  const auto attend_rotated = [&](row_rotation rotation, tensor<float>& result) {
    const key_run<const float, const float> runs[] = {{0, k_sinks.view(), v_sinks.view(), rotation},
                                                      {first, k.view(), v.view(), rotation}};
    attend(query_run{newest, q.view(), rotation}, runs, 2, lm_infinite(sinks, window), rope(dim), result.view());
  };
  attend_rotated(row_rotation::none, expected);
  rotate_as_engines_do<Angle>(newest, q);
  rotate_as_engines_do<Angle>(0, k_sinks);
  rotate_as_engines_do<Angle>(first, k);
  attend_rotated(row_rotation::to_position, out);
  return nmse(out.view(), expected.view());
}

TEST(rotated_by_engines, runs_are_as_exact_as_their_angles) {
  const struct {
    index_t position;
    double error;
  } figures[] = {{4096, 6e-10}, {32768, 4e-8}, {1 << 20, 4e-5}, {1 << 24, 1e-2}};
  for (const auto& figure : figures) {
    const double in_float = error_of_angles<float>(figure.position),
                 in_double = error_of_angles<double>(figure.position);
    std::printf("position %d: angles in float %.1e, in double %.1e\n", static_cast<int>(figure.position), in_float,
                in_double);
    EXPECT_LE(in_float, figure.error);
    EXPECT_GE(in_float, figure.error / 30);  // a bound that says something
    EXPECT_LE(in_double, 2e-13);
  }
}

}  // namespace
