// Numbers that hurt: logits and values at the edges of what README's limits promise, numbers that are none, and arithmetic in
// another mode than usual. Extents that hurt are in hostile_sizes_test.cpp.
#include <lambda_attention/lambda_attention.hpp>

#include <support/call.hpp>
#include <support/cases.hpp>
#include <support/error.hpp>
#include <support/exact_logits.hpp>
#include <support/expected_rows.hpp>
#include <support/floating_point_mode.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

constexpr int seed = 17;
constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr lambda_shape shape = lm_infinite(3, 40);
constexpr index_t num_tokens = 90;                   // more than the queries of a tile
constexpr index_t dims[][2] = {{64, 64}, {18, 20}};  // whole vectors of bytes, of pairs; and none
constexpr index_t steps[] = {1, 3, 64};              // tokens; drafts, of which the newest sees most; chunks, in tiles

/// Rows and their lse.
template <class Real>
struct results {
  tensor<Real> out;
  tensor<float> lse;

  results(index_t tokens, index_t heads, index_t dim) : out(tokens, heads, dim), lse(tokens, heads, 1) {}
};

template <class Real, class T, class Position>
results<Real> in_one_call(const inputs<T>& in, const Position& position, attention_options options) {
  results<Real> r(in.q.view().tokens, in.q.view().heads, in.v.view().dim);
  options.lse = r.lse.view();
  attend(in.q.view(), in.k.view(), in.v.view(), shape, position, r.out.view(), options);
  return r;
}

template <class Storage, class T, class Position>
results<typename Storage::compute_type> in_steps(const inputs<T>& in, const Position& position, index_t step,
                                                 attention_options options) {
  const index_t n = in.q.view().tokens;
  results<typename Storage::compute_type> r(n, in.q.view().heads, in.v.view().dim);
  auto cache = cache_for<Storage>(in, shape, position, {step});
  for (index_t i = 0; i < n; i += step) {
    const index_t count = std::min(step, n - i);
    options.lse = r.lse.view().slice(i, count);
    attend_part(in, i, count, cache, r.out, options);
  }
  return r;
}

/// How a result came about.
struct way {
  const char* name;
  row_format format;  // of the rows that were read
  isa_level isa;
  index_t step;  // 0: a whole sequence

  std::string description() const {
    return std::string(name) + ", " + name_of(isa) + (step == 0 ? "" : ", steps of " + std::to_string(step));
  }
};

/// Calls use(results, way) for inputs that every format has exactly, computed in every way: whole sequences of every element
/// type, and streams through every storage token by token, in drafts and in chunks.
template <class Position, class Use>
void in_every_way(const inputs<>& in, const Position& position, attention_options options, Use&& use,
                  bool also_in_halves = true) {
  for (const isa_level isa : isa_levels()) {
    options.isa = isa;
    const auto sequence = [&](const auto& inputs_of_type, auto real, row_format format, const char* name) {
      if (has_own_kernels(isa, format) && (also_in_halves || format != row_format::f16))
        use(in_one_call<decltype(real)>(inputs_of_type, position, options), way{name, format, isa, 0});
    };
    sequence(in, 0.0f, row_format::f32, "floats");
    sequence(converted<double>(in), 0.0, row_format::f64, "doubles");
    sequence(converted<half>(in), 0.0f, row_format::f16, "halves");
    sequence(converted<bfloat16>(in), 0.0f, row_format::bf16, "bfloat16s");
    for_each_storage([&](auto storage, const char* name) {
      using storage_type = decltype(storage);
      if (!has_own_kernels(isa, storage_type::format)) return;
      if (!also_in_halves && storage_type::format == row_format::f16) return;
      for (const index_t step : steps)
        use(in_steps<storage_type>(in, position, step, options), way{name, storage_type::format, isa, step});
    });
  }
}

/// What rounds weights, where they are not all equal.
double weights_bound(const way& w) { return pairs_bound(w.format, w.isa, 0, 0) + bytes_bound(w.format, w.isa, 0); }

template <class Real>
void expect_within(const expected_rows& expected, const results<Real>& r, double bound, const way& w) {
  error_sum lse;
  expected.add_lse_errors(r.lse, lse);
  EXPECT_LE(expected.nmse(r.out), bound) << w.description();
  EXPECT_LE(lse.nmse(), std::fmax(bound, 0x1p-46)) << "lse: " << w.description();
}

class hostile_numbers : public testing::TestWithParam<index_t> {
 protected:
  static index_t group() { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(groups, hostile_numbers, testing::Values<index_t>(1, 4, 8));

// Log2 of the largest logit that README promises: 1e30, in numbers that bfloat16 has.
constexpr double largest = 1.1328125 * 0x1p100;

int everywhere(index_t) { return 1; }
int nowhere(index_t) { return 0; }
int everywhere_below(index_t) { return -1; }
int at_few(index_t key) { return key % 29 == 1 ? 1 : 0; }
int below_at_few(index_t key) { return key % 29 == 1 ? -1 : 0; }
int below_but_at_few(index_t key) { return key % 29 == 1 ? 0 : -1; }
int to_both_sides(index_t key) { return key % 29 == 1 ? 1 : -1; }
int ascending(index_t key) { return static_cast<int>(key); }
int descending(index_t key) { return -static_cast<int>(key); }
int of_changing_sign(index_t query) { return query % 5 == 2 ? -1 : 1; }

// Weights are one or nothing here: the mean of a few values comes out, and how large logits are does not matter.
TEST_P(hostile_numbers, logits_leave_the_mean_of_the_values_that_are_left) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  struct {
    const char* name;
    int (*level)(index_t);
    double least;  // in log2; a difference of 2^-100 in weight vanishes
  } const cases[] = {
      {"all equal", everywhere, 1},
      {"all zero", nowhere, 1},
      {"all below zero", everywhere_below, 1},
      {"a few huge", at_few, 1024},
      {"a few hugely below zero", below_at_few, 1024},
      {"all but a few hugely below zero", below_but_at_few, 1024},
      {"a few above, the others below", to_both_sides, 1024},
      {"ascending", ascending, 144},
      {"descending", descending, 144},
  };
  for (const auto& [head_dim, v_head_dim] : dims) {
    const extents e = {num_tokens, 1, group(), head_dim, v_head_dim};
    for (const auto& c : cases) {
      for (const double step : {c.least, 0x1p20, 0x1p66, largest}) {
        // The largest of all logits is `step`, where they ascend at most.
        const bool whole_ladder = c.level == ascending || c.level == descending;
        if (whole_ladder && step == largest) continue;
        const exact_logits logits = {c.level, of_changing_sign, step};
        generator random(seed);
        const inputs<> in = with_logits(random, e, logits);
        attention_options options;
        options.scale = logits.scale();
        with_and_without_rope(head_dim, [&](const auto& position, const char* encoding) {
          SCOPED_TRACE(std::string(c.name) + ", step 2^" + std::to_string(std::log2(step)) + ", " + encoding +
                       ", head_dim " + std::to_string(e.head_dim));
          const expected_rows expected(random, in.q, in.k, in.v, shape, position, options, 24);
          in_every_way(in, position, options, [&](const auto& r, const way& w) {
            using real = std::decay_t<decltype(*r.out.view().data)>;
            expect_within(expected, r, arithmetic_bound<std::remove_const_t<real>>(), w);
          });
        });
      }
    }
  }
}

// The formula's rows, all of them.
template <class Position>
tensor<double> formula(const inputs<>& in, const Position& position, const attention_options& options) {
  tensor<double> out = output_for<double>(in);
  reference::attend(in.q.view(), in.k.view(), in.v.view(), shape, position, out.view(), options);
  return out;
}

// Calls visit(query, head).
template <class T, class Visit>
void for_each_row(const tensor_view<T>& rows, Visit&& visit) {
  for (index_t t = 0; t < rows.tokens; ++t)
    for (index_t h = 0; h < rows.heads; ++h) visit(t, h);
}

// Scores by which running maxima, whole numbers that are up to 40 too small and 31 too large, become as wrong as they can.
int late(index_t key) { return key < 35 ? 0 : 1; }
int now_and_then(index_t key) { return key % 50 == 37 ? 1 : 0; }
int of_neighbours(index_t query) { return query % 2 == 0 ? 4 : 1; }
constexpr exact_logits bad_maxima[] = {
    {nowhere, always_one, 1},              // none: all as good as exact
    {late, always_one, 41},                // a maximum that is replaced, and is 30 too large from then on
    {late, always_one, 39.75},             // one that is just not, and is 39 too small
    {now_and_then, of_neighbours, 10.25},  // one that is replaced for its neighbour's sake
    {ascending, always_one, 36},           // again and again
};

// What README promises of values: as exact as any others between 1e-22 and 1e20.
TEST_P(hostile_numbers, values_within_the_limits_are_as_exact_as_any) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  for (const auto& [head_dim, v_head_dim] : dims) {
    const extents e = {num_tokens, 1, group(), head_dim, v_head_dim};
    for (const exact_logits& logits : bad_maxima) {
      for (const float unit : {0x1p-73f, 0x1p59f}) {  // 1e-22, 1e20 / 127
        generator random(seed);
        const inputs<> in = with_logits(random, e, logits, unit);
        attention_options options;
        options.scale = logits.scale();
        const lambda_attention::none position;
        SCOPED_TRACE("step " + std::to_string(logits.step) + ", unit " + std::to_string(std::log2(unit)) +
                     ", head_dim " + std::to_string(head_dim));
        const expected_rows expected(random, in.q, in.k, in.v, shape, position, options, 24);
        in_every_way(
            in, position, options,
            [&](const auto& r, const way& w) {
              using real = std::remove_const_t<std::remove_pointer_t<decltype(r.out.view().data)>>;
              expect_within(expected, r, arithmetic_bound<real>() + weights_bound(w), w);
            },
            false);
      }
    }
  }
}

// Below, what is lost is absolute: 2^-126 of a sum of weights of at least 2^-31, for each key where products that small count as
// zero, else once.
TEST_P(hostile_numbers, values_below_the_limits_lose_next_to_nothing) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 1, group(), 64, 64};
  const lambda_attention::none position;
  for (const exact_logits& logits : bad_maxima) {
    for (const float unit : {0x1p-80f, 0x1p-93f, 0x1p-103f, 0x1p-126f, 0x1p-140f}) {
      generator random(seed);
      const inputs<> in = with_logits(random, e, logits, unit);
      attention_options options;
      options.scale = logits.scale();
      SCOPED_TRACE("step " + std::to_string(logits.step) + ", unit " + std::to_string(std::log2(unit)));
      const tensor<double> expected = formula(in, position, options);
      in_every_way(
          in, position, options,
          [&](const auto& r, const way& w) {
            const double keys = pairs_bound(w.format, w.isa, 0, 0) > 0 ? 43 : 1;
            const double relative = 4 * std::sqrt(arithmetic_bound<float>() + weights_bound(w));
            const double most = 0x1p-94 * keys + relative * 127 * static_cast<double>(unit);
            double worst = 0;
            for_each_row(expected.view(), [&](index_t t, index_t h) {
              for (index_t d = 0; d < e.v_head_dim; ++d)
                worst = std::fmax(
                    worst, std::fabs(static_cast<double>(r.out.view().row(t, h)[d]) - expected.view().row(t, h)[d]));
            });
            EXPECT_LE(worst, most) << w.description();
          },
          false);
    }
  }
}

// Above, sums of a tile may overflow; what is finite is right. Sums of a single token do where those of its values do.
TEST_P(hostile_numbers, values_above_the_limits_come_out_right_or_not_finite) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 1, group(), 64, 64};
  const lambda_attention::none position;
  for (const exact_logits& logits : bad_maxima) {
    for (const float unit : {0x1p78f, 0x1p90f, 0x1p114f, 0x1p120f}) {
      generator random(seed);
      const inputs<> in = with_logits(random, e, logits, unit);
      attention_options options;
      options.scale = logits.scale();
      SCOPED_TRACE("step " + std::to_string(logits.step) + ", unit " + std::to_string(std::log2(unit)));
      const tensor<double> expected = formula(in, position, options);
      in_every_way(
          in, position, options,
          [&](const auto& r, const way& w) {
            using real = std::remove_const_t<std::remove_pointer_t<decltype(r.out.view().data)>>;
            const bool may_overflow = sizeof(real) == 4 && (w.step != 1 || unit > 0x1p114f);
            const double most =
                4 * std::sqrt(arithmetic_bound<real>() + weights_bound(w)) * 127 * static_cast<double>(unit);
            double worst = 0;
            for_each_row(expected.view(), [&](index_t t, index_t h) {
              for (index_t d = 0; d < e.v_head_dim; ++d) {
                const double out = static_cast<double>(r.out.view().row(t, h)[d]);
                if (!std::isfinite(out) && may_overflow) continue;
                const double error = std::fabs(out - expected.view().row(t, h)[d]);
                worst = error <= worst ? worst : error;  // a NaN too
              }
            });
            EXPECT_LE(worst, most) << w.description();
          },
          false);
    }
  }
}

template <class T>
bool all_nan(const T* row, index_t count) {
  return std::all_of(row, row + count, [](T x) { return std::isnan(x); });
}

// A key that no storage keeps, or whose score no float holds: queries that see it get NaNs where it would have all of the
// weight, and what is right where it has none.
TEST_P(hostile_numbers, scores_that_overflow_give_nan_or_what_is_right) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr index_t giant_key = 37;
  const extents e = {num_tokens, 1, group(), 64, 64};
  const exact_logits logits = {now_and_then, of_changing_sign, 0x1p10};
  for (const float giant : {infinity, 0x1p120f}) {
    for (const double soft_cap : {0.0, 50.0}) {
      generator random(seed);
      inputs<> in = with_logits(random, e, logits);
      in.k.view().row(giant_key, 0)[e.head_dim - 1] = giant;
      attention_options options;
      options.scale = logits.scale();
      options.soft_cap = soft_cap;
      with_and_without_rope(e.head_dim, [&](const auto& position, const char* encoding) {
        SCOPED_TRACE(std::string(encoding) + ", key " + std::to_string(giant) + ", soft_cap " +
                     std::to_string(soft_cap));
        const tensor<double> expected = formula(in, position, options);
        in_every_way(in, position, options, [&](const auto& r, const way& w) {
          using real = std::remove_const_t<std::remove_pointer_t<decltype(r.out.view().data)>>;
          const bool row_of_nan = w.format == row_format::int8 && giant == infinity;
          const bool overflows = soft_cap == 0 && (sizeof(real) == 4 || giant == infinity);
          error_sum errors;
          for_each_row(expected.view(), [&](index_t t, index_t h) {
            const real* const row = r.out.view().row(t, h);
            const bool seen = shape.visible(t, giant_key);
            if (seen && (row_of_nan || (overflows && logits.factor(t) > 0))) {
              EXPECT_TRUE(all_nan(row, e.v_head_dim)) << w.description() << ", query " << t;
              EXPECT_TRUE(std::isnan(*r.lse.view().row(t, h))) << w.description() << ", query " << t;
            } else {
              for (index_t d = 0; d < e.v_head_dim; ++d)
                errors.add(static_cast<long double>(row[d]), expected.view().row(t, h)[d]);
            }
          });
          EXPECT_LE(errors.nmse(), arithmetic_bound<real>() + weights_bound(w)) << w.description();
        });
      });
    }
  }
}

// Bytes are computed in float instead where a query or a value has no useful unit: the others' bits are then others too.
bool in_bytes(const way& w) { return bytes_bound(w.format, w.isa, 1) > 0 && w.step > 0 && w.step < 64; }

// Whether the rows of two results that `counts(query, head)` names are equal: bit for bit, or, in bytes, within their bound.
template <class Real, class Counts>
bool alike(const results<Real>& a, const results<Real>& b, const way& w, Counts&& counts) {
  const index_t dim = a.out.view().dim;
  bool same = true;
  error_sum errors;
  for_each_row(a.out.view(), [&](index_t t, index_t h) {
    if (!counts(t, h)) return;
    const tensor_view<const Real> x = a.out.view(), y = b.out.view();
    same = same && std::equal(x.row(t, h), x.row(t, h) + dim, y.row(t, h));
    for (index_t d = 0; d < dim; ++d)
      errors.add(static_cast<long double>(x.row(t, h)[d]), static_cast<long double>(y.row(t, h)[d]));
  });
  return same || (in_bytes(w) && errors.nmse() <= between_two(stored_bound<int8>(w.isa)));
}

// Calls use(clean results, poisoned ones, way) for random inputs.
template <class Position, class Use>
void clean_and_poisoned(const inputs<>& clean, const inputs<>& poisoned, const Position& position, Use&& use,
                        attention_options of_clean = {}, attention_options of_poisoned = {}) {
  for (const isa_level isa : isa_levels()) {
    of_clean.isa = of_poisoned.isa = isa;
    const auto sequence = [&](auto element, row_format format, const char* name) {
      using type = decltype(element);
      using real = std::conditional_t<std::is_same_v<type, double>, double, float>;
      if (!has_own_kernels(isa, format)) return;
      use(in_one_call<real>(converted<type>(clean), position, of_clean),
          in_one_call<real>(converted<type>(poisoned), position, of_poisoned), way{name, format, isa, 0});
    };
    sequence(0.0f, row_format::f32, "floats");
    sequence(0.0, row_format::f64, "doubles");
    sequence(half{}, row_format::f16, "halves");
    sequence(bfloat16{}, row_format::bf16, "bfloat16s");
    for_each_storage([&](auto storage, const char* name) {
      using storage_type = decltype(storage);
      if (!has_own_kernels(isa, storage_type::format)) return;
      for (const index_t step : steps)
        use(in_steps<storage_type>(clean, position, step, of_clean),
            in_steps<storage_type>(poisoned, position, step, of_poisoned), way{name, storage_type::format, isa, step});
    });
  }
}

constexpr float poisons[] = {nan, infinity, -infinity};

TEST_P(hostile_numbers, nan_in_a_query_stays_in_its_row) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr index_t bad_query = 37;
  const extents e = {num_tokens, 1, group(), 64, 64};
  generator random(seed);
  const inputs<> clean = random_inputs(random, e);
  for (const float poison : poisons) {
    inputs<> poisoned = clean;
    poisoned.q.view().row(bad_query, 0)[5] = poison;
    with_and_without_rope(e.head_dim, [&](const auto& position, const char* encoding) {
      SCOPED_TRACE(std::string(encoding) + ", " + std::to_string(poison));
      clean_and_poisoned(clean, poisoned, position, [&](const auto& expected, const auto& actual, const way& w) {
        const auto is_clean = [](index_t t, index_t h) { return t != bad_query || h != 0; };
        EXPECT_TRUE(all_nan(actual.out.view().row(bad_query, 0), e.v_head_dim)) << w.description();
        EXPECT_TRUE(std::isnan(*actual.lse.view().row(bad_query, 0))) << w.description();
        EXPECT_TRUE(alike(actual, expected, w, is_clean)) << w.description();
      });
    });
  }
}

TEST_P(hostile_numbers, nan_in_a_key_makes_nan_of_the_rows_that_see_it_and_of_no_other) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 1, group(), 64, 64};
  generator random(seed);
  const inputs<> clean = random_inputs(random, e);
  for (const index_t bad_key : {1, 37, 38}) {
    inputs<> poisoned = clean;
    poisoned.k.view().row(bad_key, 0)[5] = nan;
    with_and_without_rope(e.head_dim, [&](const auto& position, const char* encoding) {
      SCOPED_TRACE(std::string(encoding) + ", key " + std::to_string(bad_key));
      clean_and_poisoned(clean, poisoned, position, [&](const auto& expected, const auto& actual, const way& w) {
        for_each_row(actual.out.view(), [&](index_t t, index_t h) {
          if (!shape.visible(t, bad_key)) return;
          EXPECT_TRUE(all_nan(actual.out.view().row(t, h), e.v_head_dim)) << w.description() << ", query " << t;
          EXPECT_TRUE(std::isnan(*actual.lse.view().row(t, h))) << w.description() << ", query " << t;
        });
        const auto is_clean = [&](index_t t, index_t) { return !shape.visible(t, bad_key); };
        EXPECT_TRUE(alike(actual, expected, w, is_clean)) << w.description();
      });
    });
  }
}

// In a row of bytes it is every number.
TEST_P(hostile_numbers, nan_in_a_value_stays_in_its_dim) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr index_t bad_dim = 5;
  const extents e = {num_tokens, 1, group(), 64, 64};
  generator random(seed);
  const inputs<> clean = random_inputs(random, e);
  for (const index_t bad_key : {1, 37, 38}) {
    for (const float poison : poisons) {
      inputs<> poisoned = clean;
      poisoned.v.view().row(bad_key, 0)[bad_dim] = poison;
      SCOPED_TRACE("key " + std::to_string(bad_key) + ", " + std::to_string(poison));
      const lambda_attention::none position;
      clean_and_poisoned(clean, poisoned, position, [&](const auto& expected, const auto& actual, const way& w) {
        const bool sink_of_a_stream = w.step > 0 && bad_key < shape.num_sinks;  // which is floats
        const bool whole_row = w.format == row_format::int8 && !sink_of_a_stream;
        for_each_row(actual.out.view(), [&](index_t t, index_t h) {
          const auto* const out = actual.out.view().row(t, h);
          const auto* const clean_out = expected.out.view().row(t, h);
          if (shape.visible(t, bad_key)) {
            EXPECT_FALSE(std::isfinite(out[bad_dim])) << w.description() << ", query " << t;
            EXPECT_TRUE(!whole_row || all_nan(out, e.v_head_dim)) << w.description() << ", query " << t;
          }
          if (w.format == row_format::int8) return;
          for (index_t d = 0; d < e.v_head_dim; ++d)
            EXPECT_TRUE(d == bad_dim || out[d] == clean_out[d]) << w.description() << ", query " << t << ", dim " << d;
        });
        EXPECT_TRUE(same_bits(actual.lse.view(), expected.lse.view())) << w.description();
      });
    }
  }
}

TEST_P(hostile_numbers, nan_in_a_learned_sink_stays_in_its_head) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 1, group(), 64, 64};
  generator random(seed);
  const inputs<> in = random_inputs(random, e);
  std::vector<float> sinks(static_cast<std::size_t>(e.heads()), 0.5f), bad = sinks;
  bad[0] = nan;
  attention_options options, with_nan;
  options.sink_logits = {sinks.data(), e.heads()};
  with_nan.sink_logits = {bad.data(), e.heads()};
  clean_and_poisoned(
      in, in, lambda_attention::none(),
      [&](const auto& clean, const auto& poisoned, const way& w) {
        for (index_t t = 0; t < num_tokens; ++t)
          EXPECT_TRUE(all_nan(poisoned.out.view().row(t, 0), e.v_head_dim)) << w.description() << ", query " << t;
        EXPECT_TRUE(alike(poisoned, clean, w, [](index_t, index_t h) { return h > 0; })) << w.description();
        EXPECT_TRUE(same_bits(poisoned.lse.view(), clean.lse.view())) << w.description();
      },
      options, with_nan);
}

// A half is at most 65504: what is above becomes infinite. A sink stays a float.
TEST(hostile_rows, of_halves_become_infinite_above_65504) {
  constexpr struct {
    float number;
    float kept;
  } cases[] = {{65504, 65504},      {65519, 65504},     {65520, infinity},    {1e6f, infinity},       {-65519, -65504},
               {-65520, -infinity}, {-1e6f, -infinity}, {infinity, infinity}, {-infinity, -infinity}, {1, 1}};
  for (const auto& [number, kept] : cases) {
    generator random(seed);
    inputs<> in = random_inputs(random, {1, 1, 1, 16, 16});
    std::fill_n(in.v.view().row(0, 0), 16, number);
    for (const isa_level isa : isa_levels()) {
      attention_options options;
      options.isa = isa;
      const lambda_attention::none position;
      EXPECT_FLOAT_EQ(*attend_stream<f16>(in, sliding_window(1), position, {}, options).view().row(0, 0), kept);
      EXPECT_FLOAT_EQ(*attend_stream<f16>(in, lm_infinite(1, 1), position, {}, options).view().row(0, 0), number);
    }
  }
}

// Rows as int8 keeps them, but for sinks, which are floats.
tensor<float> kept_in_bytes(const tensor<float>& rows) {
  tensor<float> kept = rows;
  for_each_row(rows.view(), [&](index_t t, index_t h) {
    std::vector<std::int8_t> bytes(static_cast<std::size_t>(rows.view().dim));
    if (t < shape.num_sinks) return;
    const float scale = int8::encode(rows.view().row(t, h), rows.view().dim, bytes.data());
    int8::decode(bytes.data(), scale, rows.view().dim, kept.view().row(t, h));
  });
  return kept;
}

// Rows of nothing, of next to nothing, and of one giant beside which the others are nothing: what is kept is what is attended to.
TEST_P(hostile_numbers, rows_of_bytes_are_attended_to_as_they_are_kept) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr index_t giant_dim = 5;
  const extents e = {num_tokens, 1, group(), 64, 64};
  for (const float giant : {1e3f, 1e6f, 1e20f}) {
    generator random(seed);
    inputs<> in = random_inputs(random, e);
    for_each_row(in.q.view(), [&](index_t t, index_t h) { in.q.view().row(t, h)[giant_dim] = 0; });
    for (const tensor_view<float>& rows : {in.k.view(), in.v.view()}) {
      std::fill_n(rows.row(7, 0), rows.dim, 0.0f);
      std::fill_n(rows.row(8, 0), rows.dim, -0.0f);
      for (index_t d = 0; d < rows.dim; ++d) rows.row(9, 0)[d] *= 1e-37f;
      rows.row(10, 0)[giant_dim] = giant;
      rows.row(50, 0)[giant_dim] = -giant;
    }
    const inputs<> kept = {in.q, kept_in_bytes(in.k), kept_in_bytes(in.v)};
    const lambda_attention::none position;
    const tensor<double> expected = formula(kept, position, {});
    for (const isa_level isa : isa_levels()) {
      if (!has_own_kernels(isa, row_format::int8)) continue;
      attention_options options;
      options.isa = isa;
      for (const index_t step : steps) {
        const way w = {"int8", row_format::int8, isa, step};
        const results<float> r = in_steps<int8>(in, position, step, options);
        // In bytes, half a unit is lost for each key: 1 / 65535 of the largest product of a weight and a scale.
        const double lost = in_bytes(w) ? 43 * 0.5 / 65535 * static_cast<double>(giant) : 0;
        double worst = 0;
        error_sum small, large;
        for_each_row(expected.view(), [&](index_t t, index_t h) {
          for (index_t d = 0; d < e.v_head_dim; ++d) {
            const double right = expected.view().row(t, h)[d], out = static_cast<double>(r.out.view().row(t, h)[d]);
            (d == giant_dim ? large : small).add(out, right);
            const double error = std::fabs(out - right);
            worst = error <= worst ? worst : error;
          }
        });
        EXPECT_LE(large.nmse(), stored_bound<int8>(isa)) << w.description() << ", " << giant;
        if (lost > 0) {
          EXPECT_LE(worst, lost) << w.description() << ", " << giant;
        } else {
          EXPECT_LE(small.nmse(), stored_bound<int8>(isa)) << w.description() << ", " << giant;
        }
      }
    }
  }
}

// Whatever mode other code has left the processor in, results are within the bounds; but bytes are rounded as the mode says.
class float_mode_law : public testing::TestWithParam<float_mode> {
 protected:
  static float_mode mode() { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(laws, float_mode_law, testing::ValuesIn(float_modes));

bool is_directed(float_mode mode) { return mode != float_mode::nearest && mode != float_mode::flush_to_zero; }

TEST_P(float_mode_law, results_are_within_the_bounds) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const extents e = {num_tokens, 1, 4, 64, 64};
  for (const encoding kind : encodings) {
    generator random(seed);
    const inputs<> in = random_inputs(random, e);
    const inputs<half> in_halves = converted<half>(in);
    const inputs<bfloat16> in_pairs = converted<bfloat16>(in);
    with_encoding(kind, e.heads(), e.head_dim, [&](const auto& position) {
      SCOPED_TRACE(std::string(name_of(kind)) + ", rounding " + name_of(mode()));
      const expected_rows expected(random, in.q, in.k, in.v, shape, position);
      const expected_rows of_halves(random, in_halves.q, in_halves.k, in_halves.v, shape, position);
      const expected_rows of_pairs(random, in_pairs.q, in_pairs.k, in_pairs.v, shape, position);
      for (const isa_level isa : isa_levels()) {
        attention_options options;
        options.isa = isa;
        const auto check = [&](const expected_rows& rows, const auto& call, double bound, const way& w) {
          const auto r = [&] {
            const scoped_float_mode scope(mode());
            return call();
          }();
          expect_within(rows, r, bound, w);
        };
        const auto sequence = [&](const auto& inputs_of_type, const expected_rows& rows, auto real, row_format format,
                                  const char* name) {
          if (!has_own_kernels(isa, format)) return;
          check(rows, [&] { return in_one_call<decltype(real)>(inputs_of_type, position, options); },
                tensor_bound<decltype(real)>(format, isa), {name, format, isa, 0});
        };
        sequence(in, expected, 0.0f, row_format::f32, "floats");
        sequence(in, expected, 0.0, row_format::f64, "doubles");
        sequence(in_halves, of_halves, 0.0f, row_format::f16, "halves");
        sequence(in_pairs, of_pairs, 0.0f, row_format::bf16, "bfloat16s");
        for_each_storage([&](auto storage, const char* name) {
          using storage_type = decltype(storage);
          if (!has_own_kernels(isa, storage_type::format)) return;
          if (storage_type::format == row_format::int8 && is_directed(mode())) return;
          for (const index_t step : steps)
            check(expected, [&] { return in_steps<storage_type>(in, position, step, options); },
                  storage_bound<storage_type>(1, isa), {name, storage_type::format, isa, step});
        });
      }
    });
  }
}

// To the scale of a row, or half of that, and never past 127.
TEST_P(float_mode_law, bytes_are_next_to_what_they_stand_for) {
  generator random(seed);
  inputs<> in = random_inputs(random, {num_tokens, 1, 1, 16, 64});
  for (index_t t = 0; t < num_tokens; ++t) in.v.view().row(t, 0)[t % 64] = t % 2 == 0 ? 4.7f : -4.7f;
  for (const isa_level isa : isa_levels()) {
    attention_options options;
    options.isa = isa;
    const tensor<float> out = [&] {
      const scoped_float_mode scope(mode());
      return attend_stream<int8>(in, sliding_window(1), lambda_attention::none(), {1}, options);
    }();
    const float most = 4.7f / 127 * (is_directed(mode()) ? 1.001f : 0.501f);
    for (index_t t = 0; t < num_tokens; ++t)
      for (index_t d = 0; d < 64; ++d)
        ASSERT_NEAR(out.view().row(t, 0)[d], in.v.view().row(t, 0)[d], most) << name_of(isa) << ", " << name_of(mode());
  }
}

// The modes are none that only this file knows of: they reach the kernels.
TEST(float_modes, reach_the_kernels) {
  generator random(seed);
  const inputs<> in = random_inputs(random, {num_tokens, 1, 1, 64, 64});
  inputs<> tiny = in;
  for_each_element(tiny.v.view(), [](float& x) { x = 0x1p-140f; });
  const lambda_attention::none position;
  const tensor<float> nearest = attend_sequence<float>(in, shape, position);
  for (const float_mode mode : {float_mode::upward, float_mode::downward, float_mode::toward_zero}) {
    const scoped_float_mode scope(mode);
    EXPECT_FALSE(same_bits(attend_sequence<float>(in, shape, position).view(), nearest.view())) << name_of(mode);
  }
  EXPECT_NE(*attend_sequence<float>(tiny, shape, position).view().row(0, 0), 0);
  const tensor<float> flushed = [&] {
    const scoped_float_mode scope(float_mode::flush_to_zero);
    return attend_sequence<float>(tiny, shape, position);
  }();
  EXPECT_EQ(*flushed.view().row(0, 0), 0);
  EXPECT_TRUE(same_bits(attend_sequence<float>(in, shape, position).view(), nearest.view())) << "the mode has stayed";
}

// Halves that are not normal are numbers all the same: what they become is.
TEST(float_modes, leave_halves_alone) {
  tensor<half> q(1, 1, 16), k(1, 1, 16), v(1, 1, 16);
  for (tensor<half>* t : {&q, &k}) for_each_element(t->view(), [](half& x) { x = half(1); });
  index_t bits = 1;  // up to the largest, and the smallest normal one
  for_each_element(v.view(),
                   [&](half& x) { x.bits = static_cast<std::uint16_t>(bits), bits += bits < 0x200 ? bits : 0x55; });
  for (const isa_level isa : isa_levels()) {
    tensor<float> out(1, 1, 16);
    attention_options options;
    options.isa = isa;
    {
      const scoped_float_mode scope(float_mode::flush_to_zero);
      attend(q.view(), k.view(), v.view(), full_causal(), lambda_attention::none(), out.view(), options);
    }
    for (index_t d = 0; d < 16; ++d)
      EXPECT_EQ(out.view().row(0, 0)[d], static_cast<float>(v.view().row(0, 0)[d])) << name_of(isa) << ", dim " << d;
  }
}

// Queries at the end of so many keys that a float which takes in one after the other would be off by more than the bound.
constexpr index_t many_keys = index_t{1} << 17;
void expect_tiles_of_many_keys_within(double bound, const inputs<>& in, const char* what) {
  constexpr index_t num_queries = 64, dim = 16, first = many_keys - num_queries, step = 21;
  const auto q = in.q.view().slice(first, num_queries);
  const lambda_attention::none position;
  std::vector<long double> expected(num_queries * dim);
  for (index_t t = 0; t < num_queries; t += step)
    reference::attend_row(q.row(t, 0), first + t, 0, 1, in.k.view(), in.v.view(), full_causal(), position, {},
                          &expected[static_cast<std::size_t>(t * dim)]);
  for (const isa_level isa : isa_levels()) {
    tensor<float> out(num_queries, 1, dim);
    attention_options options;
    options.isa = isa;
    const key_run run{0, in.k.view(), in.v.view()};
    attend(query_run{first, q}, &run, 1, full_causal(), position, out.view(), options);
    error_sum sum;
    for (index_t t = 0; t < num_queries; t += step)
      for (index_t d = 0; d < dim; ++d)
        sum.add(static_cast<long double>(out.view().row(t, 0)[d]), expected[static_cast<std::size_t>(t * dim + d)]);
    EXPECT_LE(sum.nmse(), bound) << name_of(isa) << ", " << what;
  }
}

TEST(tiles_of_many_keys, keep_the_bound) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  generator random(seed);
  inputs<> in = random_inputs(random, {many_keys, 1, 1, 16, 16});
  expect_tiles_of_many_keys_within(arithmetic_bound<float>(), in, "normal");
  for (tensor<float>* t : {&in.q, &in.k, &in.v}) for_each_element(t->view(), [](float& x) { x = 0.73f; });
  // Each addition rounds the same way: of the keys of a block, then of the blocks; of weights, and of values.
  const double rounding = 2 * 0x1p-24 * (96 + many_keys / 96);
  expect_tiles_of_many_keys_within(rounding * rounding, in, "all alike");
}

}  // namespace
