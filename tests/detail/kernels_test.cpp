// The kernels' mathematics and their reading and writing of rows, on every instruction set.
#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/position/rope.hpp>

#include <support/cases.hpp>
#include <support/error.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace support;
using namespace lambda_attention;

// Functions of vectors can be called only by functions compiled for their instruction set: here they are functions of
// arrays. The count is a multiple of the lanes.
template <class Real>
using array_function = void (*)(const Real* x, index_t count, Real* y);

template <class Real>
struct vector_functions {
  array_function<Real> exp2, exp2_of_whole, tanh;
};

#define LAMBDA_ATTENTION_ARRAY_FUNCTION(target_attribute, isa, function)                                  \
  template <class Real>                                                                                   \
  target_attribute void isa##_##function(const Real* x, index_t count, Real* y) {                         \
    for (index_t i = 0; i < count; i += detail::isa::vectors<Real>::lanes)                                \
      detail::isa::store_loose<Real>(y + i, detail::isa::function<Real>(detail::isa::load_loose(x + i))); \
  }
#define LAMBDA_ATTENTION_ARRAY_FUNCTIONS(target_attribute, isa)         \
  LAMBDA_ATTENTION_ARRAY_FUNCTION(target_attribute, isa, exp2)          \
  LAMBDA_ATTENTION_ARRAY_FUNCTION(target_attribute, isa, exp2_of_whole) \
  LAMBDA_ATTENTION_ARRAY_FUNCTION(target_attribute, isa, tanh)

LAMBDA_ATTENTION_ARRAY_FUNCTIONS(, baseline)
#if defined(__x86_64__)
LAMBDA_ATTENTION_ARRAY_FUNCTIONS(__attribute__((target("avx2,fma,f16c"))), avx2)
LAMBDA_ATTENTION_ARRAY_FUNCTIONS(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), avx512)
#endif

template <class Real>
vector_functions<Real> functions_for(isa_level level) {
#if defined(__x86_64__)
  if (level >= isa_level::avx512) return {avx512_exp2<Real>, avx512_exp2_of_whole<Real>, avx512_tanh<Real>};
  if (level == isa_level::avx2) return {avx2_exp2<Real>, avx2_exp2_of_whole<Real>, avx2_tanh<Real>};
#endif
  return {baseline_exp2<Real>, baseline_exp2_of_whole<Real>, baseline_tanh<Real>};
}

// In units of the last place of the exact result.
template <class Real>
double ulps(Real actual, long double exact) {
  const Real magnitude = std::fabs(static_cast<Real>(exact));
  const Real ulp = std::nextafter(magnitude, std::numeric_limits<Real>::infinity()) - magnitude;
  return static_cast<double>(std::fabs(static_cast<long double>(actual) - exact) / static_cast<long double>(ulp));
}

// The largest error in ulps over [low, high].
template <class Real>
double worst_ulps(array_function<Real> function, long double (*exact)(long double), double low, double high) {
  constexpr index_t count = 200000;
  generator random(1);
  std::uniform_real_distribution<double> numbers(low, high);
  std::vector<Real> x(count), y(count);
  for (Real& number : x) number = static_cast<Real>(numbers(random));
  x[0] = static_cast<Real>(low);
  x[1] = static_cast<Real>(high);
  function(x.data(), count, y.data());
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double error = ulps(y[i], exact(x[i]));
    if (std::isnan(error)) return error;
    if (error > worst) worst = error;
  }
  return worst;
}

template <class Real>
class kernels : public testing::Test {};
using reals = testing::Types<float, double>;
TYPED_TEST_SUITE(kernels, reals);

TYPED_TEST(kernels, exp2_is_within_3_ulps) {
  const double lowest = sizeof(TypeParam) == 4 ? -100 : -960;  // below are zeros
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    const auto exp2 = functions_for<TypeParam>(isa).exp2;
    EXPECT_LE(worst_ulps(exp2, std::exp2, lowest, 0), 3);
    EXPECT_LE(worst_ulps(exp2, std::exp2, -2, 0), 3);
    EXPECT_LE(worst_ulps(exp2, std::exp2, 0, 60), 3);  // up to the threshold of a rescale, and some
  }
}

// A rescale is exact because it is by a power of two.
TYPED_TEST(kernels, exp2_of_whole_is_exact_and_zero_far_below) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    TypeParam x[64], y[64];
    for (int i = 0; i < 64; ++i) x[i] = static_cast<TypeParam>(i - 40);
    x[0] = -1500;
    x[1] = TypeParam(-1e30f);
    functions_for<TypeParam>(isa).exp2_of_whole(x, 64, y);
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 0);
    for (int i = 2; i < 64; ++i) EXPECT_EQ(y[i], std::exp2(x[i])) << x[i];
  }
}

TYPED_TEST(kernels, exp2_is_zero_far_below_and_keeps_nan) {
  constexpr TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    TypeParam x[64], y[64];
    constexpr TypeParam just_below = sizeof(TypeParam) == 4 ? -101 : -961;
    const TypeParam far_below[] = {just_below, -1e6f, -1e30f, std::numeric_limits<TypeParam>::lowest(), -infinity};
    std::fill(std::begin(x), std::end(x), std::numeric_limits<TypeParam>::quiet_NaN());
    std::copy(std::begin(far_below), std::end(far_below), x);
    functions_for<TypeParam>(isa).exp2(x, 64, y);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(y[i], 0) << x[i];
    for (int i = 5; i < 64; ++i) EXPECT_TRUE(std::isnan(y[i]));
  }
}

// Neither weights nor what they are scaled down to: on some processors a number that is not normal takes as long as a hundred
// others. The scores of keys ascend, so that maxima rise all the time.
TYPED_TEST(kernels, no_weight_and_no_output_is_subnormal) {
  constexpr index_t dim = 16, num_keys = 3 * detail::keys_per_block;
  const auto none_is = [](const detail::buffer<TypeParam>& numbers) {
    return std::none_of(numbers.data(), numbers.data() + numbers.size(),
                        [](TypeParam x) { return std::fpclassify(x) == FP_SUBNORMAL; });
  };
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    const detail::kernel_table<TypeParam>& table = detail::kernels_for<TypeParam>(isa);
    const index_t width = table.lanes * table.tile_vectors;
    for (const double ascent : {0.3, 2.0, 7.0, 45.0}) {
      detail::buffer<TypeParam> queries(dim * width), keys(num_keys * dim), values(num_keys * dim);
      detail::buffer<TypeParam> output(dim * width), scores(detail::keys_per_block * width), sums(3 * width);
      for (index_t l = 0; l < width; ++l) queries[l] = 1;
      for (index_t k = 0; k < num_keys; ++k) {
        keys[k * dim] = static_cast<TypeParam>(ascent * static_cast<double>(k));
        for (index_t d = 0; d < dim; ++d) values[k * dim + d] = static_cast<TypeParam>(d + 1) / 1000;
      }
      detail::tile_state<TypeParam> tile = {};
      tile.head_dim = tile.v_head_dim = dim;
      tile.width = width;
      tile.output = output.data();
      tile.scores = scores.data();
      tile.running_max = sums.data();
      tile.sum = sums.data() + width;
      tile.sum_of_block = sums.data() + 2 * width;
      table.begin_tile(tile);
      detail::tile_keys<TypeParam> run = {};
      run.queries = queries.data();
      run.keys = keys.data();
      run.values = values.data();
      run.key_stride = run.value_stride = dim;
      run.num_vectors = table.tile_vectors;
      for (run.num_keys = 1; run.keys < keys.data() + keys.size(); run.keys += run.num_keys * dim) {
        run.num_keys = std::min<index_t>(2 * run.num_keys + 1, (keys.data() + keys.size() - run.keys) / dim);
        table.add_keys(tile, run);
        EXPECT_TRUE(none_is(scores) && none_is(output) && none_is(sums)) << ascent;
      }
      EXPECT_NEAR(static_cast<double>(output[0] / tile.sum[0]), 1e-3, 1e-6);
    }
  }
}

TYPED_TEST(kernels, tanh_is_within_6_ulps) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    const auto tanh = functions_for<TypeParam>(isa).tanh;
    for (const double range : {1e-6, 0.1, 1.0, 30.0, 1000.0, 1e30})
      EXPECT_LE(worst_ulps(tanh, std::tanh, -range, range), 6) << "up to " << range;
  }
}

TYPED_TEST(kernels, tanh_keeps_nan) {
  for (const isa_level isa : isa_levels()) {
    TypeParam x[64], y[64];
    std::fill(std::begin(x), std::end(x), std::numeric_limits<TypeParam>::quiet_NaN());
    functions_for<TypeParam>(isa).tanh(x, 64, y);
    for (const TypeParam t : y) EXPECT_TRUE(std::isnan(t)) << name_of(isa);
  }
}

// Against long double at the phase that the table says, at positions that no float and no double holds. There are four
// roundings, of x, its polynomial, their product and the factor, by at most epsilon / 2 of what is at most sqrt(1/2).
TYPED_TEST(kernels, cos_sin_round_four_times) {
  constexpr double factor = 1.5;
  const rope position(150, 10000, {pair_layout::half_split, 0, factor});
  const rotation_data rotation = position.data().rotation;
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    generator random(2);
    double worst = 0;
    for (int round = 0; round < 3000; ++round) {
      const std::uint64_t at = round < 100 ? static_cast<std::uint64_t>(round) : random() >> draw(random, 1, 63);
      alignas(64) TypeParam angles[3][160];
      detail::kernels_for<TypeParam>(isa).cos_sin(rotation, at - 1, 3, angles[0]);
      const TypeParam* const cosines = angles[1];
      const TypeParam* const sines = angles[1] + 80;
      for (index_t p = 0; p < rotation.num_pairs; ++p) {
        const long double turns =
            static_cast<long double>(static_cast<std::int64_t>(at * rotation.turns[p])) * 0x1p-64L;
        const long double angle = turns * 6.283185307179586476925286766559005768L;
        worst = std::max({worst, static_cast<double>(std::fabs(cosines[p] / factor - std::cos(angle))),
                          static_cast<double>(std::fabs(sines[p] / factor - std::sin(angle)))});
      }
    }
    EXPECT_LE(worst, 1.5 * std::numeric_limits<TypeParam>::epsilon());
  }
}

template <class Real>
bool same_number(Real a, Real b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// All 16-bit patterns, in rows of every length up to a few vectors, none of them aligned.
template <class Element, class Real>
void check_reading(const detail::kernel_table<Real>& table, row_format format) {
  std::vector<Element> elements(65536 + 100);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const std::uint16_t bits = static_cast<std::uint16_t>(i * 40503);  // odd: a permutation
    std::memcpy(&elements[i], &bits, sizeof bits);
  }
  std::size_t first = 1;
  for (index_t count = 1; first < 65536; count = count % 70 + 1) {
    Real row[80];
    std::fill(std::begin(row), std::end(row), Real(42));
    table.read_row(format, elements.data() + first, count, 1, row);
    for (index_t i = 0; i < count; ++i)
      ASSERT_TRUE(
          same_number(row[i], static_cast<Real>(static_cast<float>(elements[first + static_cast<std::size_t>(i)]))));
    for (index_t i = count; i < 80; ++i) ASSERT_EQ(row[i], 42) << "written past " << count << " elements";
    first += static_cast<std::size_t>(count);
  }
}

TYPED_TEST(kernels, read_narrow_rows_as_their_elements) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    check_reading<half>(detail::kernels_for<TypeParam>(isa), row_format::f16);
    check_reading<bfloat16>(detail::kernels_for<TypeParam>(isa), row_format::bf16);
  }
}

template <class Element, class Real>
void check_wide(const detail::kernel_table<Real>& table, row_format format) {
  generator random(3);
  for (index_t count = 1; count < 70; ++count) {
    const tensor<Element> elements = random_tensor<Element>(random, 1, 1, count);
    const tensor<Real> numbers = random_tensor<Real>(random, 1, 1, count);
    Real row[70];
    table.read_row(format, elements.view().data, count, 1, row);
    for (index_t i = 0; i < count; ++i) EXPECT_EQ(row[i], static_cast<Real>(elements.view().data[i]));
    Element written[71];
    written[count] = 42;
    table.write_row(format, numbers.view().data, count, written);
    for (index_t i = 0; i < count; ++i) EXPECT_EQ(written[i], static_cast<Element>(numbers.view().data[i]));
    EXPECT_EQ(written[count], 42);
  }
}

TYPED_TEST(kernels, read_and_write_wide_rows_as_their_elements) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    check_wide<float>(detail::kernels_for<TypeParam>(isa), row_format::f32);
    check_wide<double>(detail::kernels_for<TypeParam>(isa), row_format::f64);
  }
}

TEST(kernels_of_float, read_bytes_times_their_scale) {
  std::int8_t bytes[256];
  for (int i = 0; i < 256; ++i) bytes[i] = static_cast<std::int8_t>(i - 128);
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    for (index_t count = 0; count <= 256; ++count) {
      float row[256];
      detail::kernels_for<float>(isa).read_row(row_format::int8, bytes + 256 - count, count, 0.37f, row);
      for (index_t i = 0; i < count; ++i)
        ASSERT_EQ(row[i], 0.37f * static_cast<float>(bytes[256 - count + i])) << i << " of " << count;
    }
  }
}

// Rows of any length to a vector of a panel, and a vector of a panel to rows.
TYPED_TEST(kernels, pack_and_unpack_are_transpositions) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    const detail::kernel_table<TypeParam>& table = detail::kernels_for<TypeParam>(isa);
    const index_t width = table.lanes * table.tile_vectors;
    for (const index_t dim : {1, 7, 16, 33, 128}) {
      const index_t stride = detail::round_up(dim, detail::row_multiple), first_lane = width - table.lanes;
      detail::buffer<TypeParam> rows(table.lanes * stride), panel(stride * width), scale(table.lanes),
          back(rows.size());
      for (index_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<TypeParam>(i);
      for (index_t l = 0; l < table.lanes; ++l) scale[l] = static_cast<TypeParam>(l + 1);
      table.pack(rows.data(), stride, dim, TypeParam(0.5), panel.data() + first_lane, width);
      table.unpack(panel.data() + first_lane, width, scale.data(), dim, back.data(), stride);
      for (index_t l = 0; l < table.lanes; ++l) {
        for (index_t d = 0; d < dim; ++d) {
          ASSERT_EQ(panel[d * width + first_lane + l], rows[l * stride + d] / 2);
          ASSERT_EQ(back[l * stride + d], rows[l * stride + d] / 2 * scale[l]);
        }
      }
      for (index_t d = 0; d < dim; ++d)
        for (index_t l = 0; l < first_lane; ++l) ASSERT_EQ(panel[d * width + l], 0) << "written beside its vector";
    }
  }
}

// Numbers of every magnitude, some of them in the middle between two neighbours.
template <class Element, class Real>
void check_writing(const detail::kernel_table<Real>& table, row_format format) {
  generator random(4);
  for (index_t round = 0; round < 5000; ++round) {
    const index_t count = draw(random, 1, 40);
    Real numbers[40];
    for (Real& number : numbers) {
      std::uint32_t bits = static_cast<std::uint32_t>(random());
      if (draw(random, 0, 1) == 0) bits &= 0xfffff000u;
      number = static_cast<Real>(detail::float_of(bits));
    }
    Element row[41];
    const Element canary(42.0f);
    row[count] = canary;
    table.write_row(format, numbers, count, row);
    for (index_t i = 0; i < count; ++i) {
      const float expected = static_cast<float>(Element(static_cast<float>(numbers[i])));
      ASSERT_TRUE(same_number(static_cast<float>(row[i]), expected)) << numbers[i];
    }
    ASSERT_EQ(row[count].bits, canary.bits);
  }
}

TYPED_TEST(kernels, write_narrow_rows_as_their_elements) {
  for (const isa_level isa : isa_levels()) {
    SCOPED_TRACE(name_of(isa));
    check_writing<half>(detail::kernels_for<TypeParam>(isa), row_format::f16);
    check_writing<bfloat16>(detail::kernels_for<TypeParam>(isa), row_format::bf16);
  }
}

// Bit for bit as the storage does: rows of one magnitude, of every, of ties, with what is no number among them, and of zeros.
TEST(kernels_of_float, write_bytes_as_their_storage) {
  generator random(6);
  for (index_t round = 0; round < 5000; ++round) {
    const index_t count = draw(random, 1, 70);
    float numbers[70];
    const float size = std::ldexp(1.0f, static_cast<int>(draw(random, -149, 127)));
    const index_t what = draw(random, 0, 9);
    for (float& number : numbers) {
      number = size * static_cast<float>(draw(random, -254, 254)) / 254;
      if (what == 0) number = detail::float_of(static_cast<std::uint32_t>(random()));
      if (what == 1) number = draw(random, 0, 1) == 0 ? 0.0f : -0.0f;
    }
    if (what == 2) numbers[draw(random, 0, count - 1)] = std::numeric_limits<float>::infinity();
    std::int8_t expected[70];
    const float expected_scale = int8::encode(numbers, count, expected);
    for (const isa_level isa : isa_levels()) {
      std::int8_t row[71];
      row[count] = 42;
      const float scale = detail::kernels_for<float>(isa).write_row(row_format::int8, numbers, count, row);
      ASSERT_TRUE(same_number(scale, expected_scale)) << name_of(isa) << ": " << scale << ", " << expected_scale;
      for (index_t i = 0; i < count; ++i) ASSERT_EQ(row[i], expected[i]) << name_of(isa) << ": " << numbers[i] / scale;
      ASSERT_EQ(row[count], 42);
    }
  }
}

// A run of keys in pairs, in rings of whole steps. What is no key of the run is NaN there.
struct run_of_pairs {
  run_of_pairs(index_t head_dim, index_t v_head_dim, index_t missing, index_t count, generator& random)
      : first(missing), num_keys(count), words(head_dim / 2), v_words(v_head_dim) {
    const index_t rows = detail::round_up(missing + count, step);
    keys = detail::buffer<float>(rows * words);
    values = detail::buffer<float>(rows / 2 * v_words);
    const auto half_of = [](float* word, index_t half, float number) {
      const std::uint16_t bits = bfloat16(number).bits;
      std::memcpy(reinterpret_cast<unsigned char*>(word) + 2 * half, &bits, sizeof bits);
    };
    std::normal_distribution<float> normal;
    for (index_t k = 0; k < rows; ++k) {
      const bool there = k >= missing && k < missing + count;
      const auto number = [&] { return there ? normal(random) : std::numeric_limits<float>::quiet_NaN(); };
      for (index_t d = 0; d < head_dim; ++d) half_of(&keys[k * words + d / 2], d % 2, number());
      for (index_t d = 0; d < v_head_dim; ++d) half_of(&values[k / 2 * v_words + d], k % 2, number());
    }
  }

  detail::tile_keys<float> as_seen_by(const detail::pair_kernels<float>& kernels) const {
    detail::tile_keys<float> run = {};
    run.keys = keys.data() + first * words;
    run.values = values.data() + first / 2 * v_words;
    run.key_stride = words;
    run.value_stride = v_words;
    run.num_keys = num_keys;
    run.missing = first % kernels.keys_per_step;
    return run;
  }

  static constexpr index_t step = 32;
  index_t first, num_keys, words, v_words;
  detail::buffer<float> keys, values;
};

// What queries get of runs of keys by the kernels of an ISA, divided by its weight.
std::vector<float> output_of_tile(const std::vector<run_of_pairs>& runs,
                                  const std::vector<detail::tile_keys<float>>& how,
                                  const detail::buffer<float>& queries, index_t head_dim, index_t v_head_dim,
                                  isa_level isa) {
  constexpr index_t width = 64;
  const detail::pair_kernels<float>& kernels = *detail::pair_kernels_for<float>(isa);
  detail::buffer<float> output(v_head_dim * width), scores(detail::keys_per_block * width), sums(4 * width);
  detail::tile_state<float> tile = {};
  tile.head_dim = head_dim;
  tile.v_head_dim = v_head_dim;
  tile.width = width;
  tile.output = output.data();
  tile.scores = scores.data();
  tile.running_max = sums.data();
  tile.sum = sums.data() + width;
  tile.sum_of_block = sums.data() + 3 * width;
  for (index_t l = 0; l < width; ++l) sums[2 * width + l] = static_cast<float>(l);
  tile.position = sums.data() + 2 * width;
  tile.has_slope = true;
  for (float& slope : tile.slope) slope = 0.01f;
  detail::kernels_for<float>(isa).begin_tile(tile);
  for (std::size_t r = 0; r < runs.size(); ++r) {
    detail::tile_keys<float> run = runs[r].as_seen_by(kernels);
    run.queries = queries.data();
    run.first_vector = how[r].first_vector;
    run.num_vectors = how[r].num_vectors;
    run.masked = how[r].masked;
    run.lowest = how[r].lowest;
    run.highest = how[r].highest;
    run.distance = 100;
    run.lane_step = run.key_step = 1;
    kernels.add_keys(tile, run);
  }
  std::vector<float> result(output.data(), output.data() + output.size());
  for (std::size_t i = 0; i < result.size(); ++i) {
    const float sum = tile.sum[i % width];
    if (sum != 0) result[i] /= sum;
  }
  return result;
}

// Steps that begin before a run and end behind it, that are masked, of few columns, and of maxima that rise. Both round the
// same numbers; where sums differ in their last bit a weight may be rounded the other way.
TEST(kernels_of_float, matrices_give_what_pairs_do) {
  if (highest_isa() < isa_level::amx_bf16) GTEST_SKIP() << "this machine multiplies no matrices";
  generator random(11);
  for (int round = 0; round < 300; ++round) {
    const index_t head_dim = 32 * draw(random, 1, 5), v_head_dim = 32 * draw(random, 1, 5);
    detail::buffer<float> queries(head_dim / 2 * 64);
    std::normal_distribution<float> normal(
        0, static_cast<float>(draw(random, 1, 20)) / std::sqrt(static_cast<float>(head_dim)));
    for (index_t i = 0; i < queries.size(); ++i)
      queries[i] = detail::float_of(std::uint32_t{bfloat16(normal(random)).bits} << 16 | bfloat16(normal(random)).bits);
    std::vector<run_of_pairs> runs;
    std::vector<detail::tile_keys<float>> how;
    for (index_t r = 0; r < 3; ++r) {
      runs.emplace_back(head_dim, v_head_dim, draw(random, 0, 31), draw(random, 1, 220), random);
      detail::tile_keys<float> run = {};
      run.first_vector = static_cast<int>(draw(random, 0, 3));
      run.num_vectors = static_cast<int>(draw(random, 1, 4 - run.first_vector));
      run.masked = draw(random, 0, 1) == 1;
      run.lowest = draw(random, -200, 60);
      run.highest = run.lowest + draw(random, 0, 200);
      how.push_back(run);
    }
    const std::vector<float> pairs = output_of_tile(runs, how, queries, head_dim, v_head_dim, isa_level::avx512_bf16);
    const std::vector<float> matrices = output_of_tile(runs, how, queries, head_dim, v_head_dim, isa_level::amx_bf16);
    double error = 0, size = 0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      ASSERT_TRUE(std::isfinite(matrices[i])) << "round " << round;
      error += std::pow(static_cast<double>(matrices[i]) - static_cast<double>(pairs[i]), 2);
      size += std::pow(static_cast<double>(pairs[i]), 2);
    }
    ASSERT_LE(error, between_two(squared_rounding(row_format::bf16)) * size) << "round " << round;
  }
}

// Rows of a cache as kernels of a single position read them, and queries and weights of a few heads.
struct stored_position {
  stored_position(row_format row_format_of_all, int num_heads, index_t dim, index_t num_rows, std::uint64_t seed)
      : format(row_format_of_all),
        heads(num_heads),
        padded_dim(detail::round_up(dim, detail::row_multiple)),
        num_keys(num_rows),
        row_bytes(padded_dim * (format == row_format::f32    ? 4
                                : format == row_format::int8 ? 1
                                                             : 2)),
        keys(num_rows * row_bytes),
        values(num_rows * row_bytes),
        key_scales(at(num_rows), 1.0f),
        value_scales(at(num_rows), 1.0f),
        queries(heads * padded_dim),
        weights(heads * stride()),
        random(seed) {
    std::normal_distribution<float> normal;
    std::vector<float> row(static_cast<std::size_t>(padded_dim), 0.0f);
    const detail::kernel_table<float>& table = detail::kernels_for<float>(isa_level::baseline);
    for (index_t k = 0; k < num_rows; ++k) {
      for (index_t d = 0; d < dim; ++d) row[static_cast<std::size_t>(d)] = normal(random);
      key_scales[at(k)] = table.write_row(format, row.data(), padded_dim, &keys[k * row_bytes]);
      for (index_t d = 0; d < dim; ++d) row[static_cast<std::size_t>(d)] = normal(random);
      value_scales[at(k)] = table.write_row(format, row.data(), padded_dim, &values[k * row_bytes]);
    }
    for (int h = 0; h < heads; ++h) {
      for (index_t d = 0; d < dim; ++d) queries[h * padded_dim + d] = normal(random);
      for (index_t k = 0; k < num_rows; ++k) weights[h * stride() + k] = std::exp(normal(random));
      for (index_t k = num_rows; k < stride(); ++k) weights[h * stride() + k] = std::nanf("");  // not to be read
    }
  }

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  index_t stride() const { return detail::round_up(num_keys, detail::row_multiple); }
  detail::stored_rows rows() const {
    return {format, keys.data(), values.data(), key_scales.data(), value_scales.data(), row_bytes, row_bytes, num_keys};
  }

  std::vector<double> numbers(const detail::buffer<unsigned char>& bytes, const std::vector<float>& scales,
                              index_t k) const {
    std::vector<float> row(at(padded_dim));
    detail::kernels_for<float>(isa_level::baseline)
        .read_row(format, &bytes.data()[k * row_bytes], padded_dim, scales[at(k)], row.data());
    return {row.begin(), row.end()};
  }
  // A product of a query and a key, and the square root of the squares of its terms: what its rounding is relative to.
  struct score {
    double sum = 0, size = 0;
  };
  score score_of(int h, index_t k) const {
    const std::vector<double> key = numbers(keys, key_scales, k);
    score s;
    for (index_t d = 0; d < padded_dim; ++d) {
      const double term = key[at(d)] * static_cast<double>(queries.data()[h * padded_dim + d]);
      s.sum += term;
      s.size = std::hypot(s.size, term);
    }
    return s;
  }
  std::vector<double> output(int h) const {
    std::vector<double> sum(at(padded_dim));
    for (index_t k = 0; k < num_keys; ++k) {
      const std::vector<double> value = numbers(values, value_scales, k);
      for (index_t d = 0; d < padded_dim; ++d)
        sum[at(d)] += value[at(d)] * static_cast<double>(weights.data()[h * stride() + k]);
    }
    return sum;
  }

  row_format format;
  int heads;
  index_t padded_dim, num_keys, row_bytes;
  detail::buffer<unsigned char> keys, values;
  std::vector<float> key_scales, value_scales;
  detail::buffer<float> queries, weights;
  generator random;
};

// Those that take rows of a format.
const detail::position_kernels<float>& kernels_for(row_format format, isa_level isa) {
  return detail::position_kernels_for<float>(isa, format == row_format::bf16);
}

// How many queries there may be at once.
std::vector<int> numbers_of_queries(const detail::position_kernels<float>& table) {
  if (table.queries_at_once == 4) return {1, 2, 4};
  return {1, 2, 3, 4, 5, 15, 16, 17, table.queries_at_once};
}

// The errors of one call, which writes nothing behind its scores.
void add_errors(const stored_position& p, isa_level isa, error_sum& of_scores, error_sum& of_output) {
  constexpr float canary = 42;
  const detail::position_kernels<float>& table = kernels_for(p.format, isa);
  detail::buffer<float> scores(p.heads * p.stride()), output(p.heads * p.padded_dim);
  for (index_t i = 0; i < scores.size(); ++i) scores[i] = canary;
  table.score_rows(p.queries.data(), p.heads, p.padded_dim, p.rows(), scores.data(), p.stride());
  table.add_values(p.weights.data(), p.stride(), p.heads, p.padded_dim, p.rows(), output.data());
  for (int h = 0; h < p.heads; ++h) {
    for (index_t k = 0; k < p.num_keys; ++k) {
      const stored_position::score expected = p.score_of(h, k);
      of_scores.add(scores[h * p.stride() + k] - expected.sum + expected.size, expected.size);
    }
    for (index_t k = p.num_keys; k < p.stride(); ++k) ASSERT_EQ(scores[h * p.stride() + k], canary);
    const std::vector<double> expected = p.output(h);
    for (index_t d = 0; d < p.padded_dim; ++d) of_output.add(output[h * p.padded_dim + d], expected[p.at(d)]);
  }
}

// Whatever the parts in which a pass takes them, the passes together ask for as much as they read, once.
TEST(stored_rows, are_asked_for_by_all_passes) {
  constexpr index_t key_bytes = 12, value_bytes = 24, num_rows = 10;
  const std::vector<unsigned char> memory(2 * num_rows * value_bytes);
  const detail::stored_rows rows = {row_format::f32, memory.data(), memory.data(), nullptr,
                                    nullptr,         key_bytes,     value_bytes,   num_rows};
  for (const index_t num_passes : {1, 2, 3, 4}) {
    std::vector<int> keys_asked(2 * num_rows * key_bytes), values_asked(memory.size());
    for (index_t pass = 0; pass < num_passes; ++pass) {
      for (index_t first = 0; first < num_rows; first += 3) {
        const detail::stored_rows part = rows.in_pass(pass, num_passes).part(first, 3);
        for (index_t b = 0; b < part.num_keys * (key_bytes / num_passes); ++b)
          ++keys_asked.at(static_cast<std::size_t>(part.keys + part.keys_ahead + b - memory.data()));
        for (index_t b = 0; b < part.num_keys * (value_bytes / num_passes); ++b)
          ++values_asked.at(static_cast<std::size_t>(part.values + part.values_ahead + b - memory.data()));
      }
    }
    for (index_t b = 0; b < 2 * num_rows * key_bytes; ++b)
      EXPECT_EQ(keys_asked[static_cast<std::size_t>(b)], b < num_rows * key_bytes ? 0 : 1) << b;
    for (index_t b = 0; b < 2 * num_rows * value_bytes; ++b)
      EXPECT_EQ(values_asked[static_cast<std::size_t>(b)], b < num_rows * value_bytes ? 0 : 1) << b;
  }
}

// Every format, number of heads and ragged end.
TEST(kernels_of_float, multiply_stored_rows) {
  for (const row_format format : {row_format::f32, row_format::f16, row_format::bf16, row_format::int8}) {
    for (const index_t dim : {12, 64, 80, 96, 128, 192, 512}) {
      for (const isa_level isa : isa_levels()) {
        SCOPED_TRACE("format " + std::to_string(static_cast<int>(format)) + ", dim " + std::to_string(dim) + ", " +
                     name_of(isa));
        error_sum of_scores, of_output;
        for (const int heads : numbers_of_queries(kernels_for(format, isa))) {
          for (const index_t num_keys : {1, 5, 32, 67, 300})
            add_errors(stored_position(format, heads, dim, num_keys, 12), isa, of_scores, of_output);
        }
        const double bound = arithmetic_bound<float>() + pairs_bound(format, isa, 1, 0) + bytes_bound(format, isa, 0);
        EXPECT_LE(of_scores.nmse(), bound);
        EXPECT_LE(of_output.nmse(), bound);
      }
    }
  }
}

// One weight of 1, and hundreds that are too small for a whole number of its unit: where all values are alike, so is the
// output to their sum.
TEST(kernels_of_float, keep_the_sum_of_weights) {
  for (const row_format format : {row_format::f32, row_format::f16, row_format::bf16, row_format::int8}) {
    for (const int heads : {1, 2, 4, 16, 20}) {
      stored_position p(format, heads, 64, 300, 14);
      const std::vector<float> ones(64, 1.0f);
      const detail::kernel_table<float>& table = detail::kernels_for<float>(isa_level::baseline);
      for (index_t k = 0; k < p.num_keys; ++k)
        p.value_scales[p.at(k)] = table.write_row(format, ones.data(), 64, &p.values[k * p.row_bytes]);
      for (index_t i = 0; i < p.weights.size(); ++i) p.weights[i] = i % p.stride() == 0 ? 1.0f : 0x1p-17f;
      for (const isa_level isa : isa_levels()) {
        const detail::position_kernels<float>& of_format = kernels_for(format, isa);
        if (heads > of_format.queries_at_once) continue;
        SCOPED_TRACE("format " + std::to_string(static_cast<int>(format)) + ", " + name_of(isa));
        detail::buffer<float> output(heads * p.padded_dim);
        of_format.add_values(p.weights.data(), p.stride(), heads, p.padded_dim, p.rows(), output.data());
        for (index_t i = 0; i < output.size(); ++i) ASSERT_NEAR(output[i], 1 + 299 * 0x1p-17, 2e-6) << i;
      }
    }
  }
}

// Queries so small that so many units overflow are taken as floats.
TEST(kernels_of_float, multiply_bytes_by_queries_of_any_size) {
  for (const float size : {1e-36f, 1.0f, 1e33f}) {
    stored_position p(row_format::int8, 2, 128, 50, 14);
    for (index_t i = 0; i < p.queries.size(); ++i) p.queries[i] *= size;
    std::vector<std::vector<float>> scores;
    for (const isa_level isa : isa_levels()) {
      scores.emplace_back(static_cast<std::size_t>(2 * p.stride()));
      kernels_for(row_format::int8, isa)
          .score_rows(p.queries.data(), 2, p.padded_dim, p.rows(), scores.back().data(), p.stride());
      for (int h = 0; h < 2; ++h)
        for (index_t k = h * p.stride(); k < h * p.stride() + p.num_keys; ++k)
          EXPECT_NEAR(scores.back()[stored_position::at(k)] / size, scores[0][stored_position::at(k)] / size, 1e-2)
              << name_of(isa) << ", size " << size;
    }
  }
}

// Weights and queries that are zero, no numbers, or beyond what can be scaled.
TEST(kernels_of_float, multiply_bytes_by_what_is_no_number) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float odd : {0.0f, 1e-40f, 1e35f, infinity, nan}) {
    for (const index_t place : {0, 77, 299}) {
      for (const int heads : {1, 2}) {
        stored_position p(row_format::int8, heads, 128, 300, 13);
        p.queries[place % 128] = odd;
        p.weights[place] = odd;
        const bool finite = odd < infinity;
        for (const isa_level isa : isa_levels()) {
          SCOPED_TRACE(std::to_string(odd) + " at " + std::to_string(place) + ", " + name_of(isa));
          const detail::position_kernels<float>& table = kernels_for(row_format::int8, isa);
          detail::buffer<float> scores(heads * p.stride()), output(heads * p.padded_dim);
          table.score_rows(p.queries.data(), heads, p.padded_dim, p.rows(), scores.data(), p.stride());
          table.add_values(p.weights.data(), p.stride(), heads, p.padded_dim, p.rows(), output.data());
          for (int h = 0; h < heads; ++h) {
            for (index_t k = 0; k < p.num_keys; ++k)
              ASSERT_EQ(std::isfinite(scores[h * p.stride() + k]), finite || h == 1) << h << ", " << k;
            for (index_t d = 0; d < p.padded_dim; ++d)
              ASSERT_EQ(std::isfinite(output[h * p.padded_dim + d]), finite || h == 1) << h << ", " << d;
          }
        }
      }
    }
  }
}

}  // namespace
