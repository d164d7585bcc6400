#include <lambda_attention/detail/row_store.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::row_format;
using la::row_rotation;
using la::detail::row_store;
using la::detail::row_window;

namespace {

// Numbers that every format holds exactly.
template <class T>
std::vector<T> counting(index_t count) {
  std::vector<T> numbers;
  for (index_t i = 0; i < count; ++i) numbers.push_back(static_cast<T>(static_cast<float>(i % 100)));
  return numbers;
}

template <class Real>
const auto& kernels = la::detail::kernels_for<Real>(la::isa_level::automatic);

// Row 3 of head 1 of [5, 2, 21] numbers of type T, read as Real.
template <class Real, class T>
std::vector<Real> read() {
  const std::vector<T> numbers = counting<T>(5 * 2 * 21);
  const row_store<Real> store =
      la::detail::store_of<Real>(la::detail::erase(la::token_major(numbers.data(), 5, 2, 21)));
  std::vector<Real> row(21);
  store.read(kernels<Real>, store.row(1, 3), 1, row.data());
  return row;
}

struct number {
  std::int16_t bits;
  number() = default;
  explicit number(float x) : bits(static_cast<std::int16_t>(x)) {}
};

}  // namespace

template <>
struct lambda_attention::element_traits<number> {
  static constexpr auto kind = element_kind::custom;
  static float to_float(number n) { return n.bits; }
  static number from_float(float x) { return number(x); }
};

TEST(RowStore, ReadsEveryElementType) {
  std::vector<float> narrow;
  std::vector<double> wide;
  for (index_t d = 0; d < 21; ++d) {
    narrow.push_back(static_cast<float>((3 * 42 + 21 + d) % 100));
    wide.push_back(static_cast<double>((3 * 42 + 21 + d) % 100));
  }
  EXPECT_EQ((read<float, float>()), narrow);
  EXPECT_EQ((read<float, double>()), narrow);
  EXPECT_EQ((read<float, la::half>()), narrow);
  EXPECT_EQ((read<float, la::bfloat16>()), narrow);
  EXPECT_EQ((read<float, number>()), narrow);
  EXPECT_EQ((read<double, float>()), wide);
  EXPECT_EQ((read<double, double>()), wide);
  EXPECT_EQ((read<double, la::half>()), wide);
  EXPECT_EQ((read<double, la::bfloat16>()), wide);
  EXPECT_EQ((read<double, number>()), wide);
}

// [heads][capacity] rows; key j in slot j % capacity, with its scale, which are as far apart from head to head as rows are.
TEST(RowStore, OfARingFindsTheSlotOfAKey) {
  std::vector<std::int8_t> bytes(2 * 4 * 16);
  std::vector<float> scales(16 + 4);
  row_store<float> store;
  store.format = row_format::int8;
  store.data = reinterpret_cast<const unsigned char*>(bytes.data());
  store.scales = scales.data();
  store.row_bytes = 16;
  store.head_bytes = 64;
  store.capacity = 4;
  store.dim = 3;
  bytes[64 + 2 * 16 + 1] = -5;
  scales[16 + 2] = 0.5f;
  for (const index_t key : {2, 6, 4002}) {
    EXPECT_EQ(store.row(1, key), store.data + 64 + 32);
    EXPECT_EQ(*store.scale(1, key), 0.5f);
    EXPECT_EQ(store.run_length(key), 2);
    std::vector<float> row(3);
    store.read(kernels<float>, store.row(1, key), *store.scale(1, key), row.data());
    EXPECT_EQ(row, (std::vector<float>{0, -2.5f, 0}));
  }
  store.scales = nullptr;
  EXPECT_EQ(store.scale(1, 2), nullptr);
}

// Of every key in a table of any number of runs, with and without gaps.
TEST(RowStore, FindsTheRunOfAKey) {
  const std::vector<unsigned char> memory(100000);
  for (index_t num_runs = 1; num_runs < 20; ++num_runs) {
    std::vector<la::detail::placed_run> runs;
    index_t first = num_runs % 3;
    for (index_t r = 0; r < num_runs; ++r) {
      const index_t length = 1 + r * r % 7;
      const unsigned char* const data = memory.data() + 1000 * r;
      runs.push_back({{first, first + length}, row_rotation::to_position, {data, 8 + r, 100}, {data + 500, 16, 200}});
      first += length + r % 2;
    }
    row_store<float> store;
    store.in_runs = true;
    store.runs = runs.data();
    store.num_runs = num_runs;
    row_store<float> values = store;
    values.rows_of_run = &la::detail::placed_run::values;
    for (const la::detail::placed_run& run : runs)
      for (index_t key = run.indices.first; key < run.indices.last; ++key) {
        const la::detail::row_run found = store.run_from(2, key), value = values.run_from(1, key);
        EXPECT_EQ(found.first_row, run.keys.data + 200 + (key - run.indices.first) * run.keys.row_bytes);
        EXPECT_EQ(value.first_row, run.values.data + 200 + (key - run.indices.first) * 16);
        EXPECT_EQ(found.row_bytes, run.keys.row_bytes);
        EXPECT_EQ(found.num_rows, run.indices.last - key);
        EXPECT_EQ(found.rotation, row_rotation::to_position);
        EXPECT_EQ(value.rotation, row_rotation::none);
        EXPECT_EQ(found.scales, nullptr);
      }
  }
}

TEST(RowTreatment, IsWhatMakesARowTheOneThatIsWanted) {
  using la::detail::row_treatment;
  using la::detail::treatment_of;
  const row_rotation none = row_rotation::none, own = row_rotation::to_position, zero = row_rotation::to_zero;
  for (const row_rotation same : {none, own, zero}) EXPECT_EQ(treatment_of(same, same), row_treatment::as_stored);
  EXPECT_EQ(treatment_of(none, own), row_treatment::turn_to_own_position);
  EXPECT_EQ(treatment_of(none, zero), row_treatment::turn_to_zero);
  EXPECT_EQ(treatment_of(zero, own), row_treatment::turn_on_to_own_position);
  EXPECT_EQ(treatment_of(own, zero), row_treatment::turn_back_to_zero);
}

TEST(RowStore, NumbersOfTheKernelsTypeNeedNoReading) {
  const std::vector<float> wide = counting<float>(8);
  const std::vector<la::half> narrow = counting<la::half>(8);
  const auto wide_store = la::detail::store_of<float>(la::detail::erase(la::token_major(wide.data(), 1, 1, 8)));
  const auto narrow_store = la::detail::store_of<float>(la::detail::erase(la::token_major(narrow.data(), 1, 1, 8)));
  std::vector<float> room(8);
  EXPECT_EQ(wide_store.numbers(kernels<float>, wide_store.row(0, 0), 1, room.data()), wide.data());
  EXPECT_EQ(narrow_store.numbers(kernels<float>, narrow_store.row(0, 0), 1, room.data()), room.data());
  EXPECT_EQ(room, wide);
}

TEST(RowWindow, RunsEndWhereTheRingDoes) {
  float memory[8 * 4];
  const row_window<float> ring = {memory, memory, 4, 8};
  EXPECT_EQ(ring.row(3), memory + 12);
  EXPECT_EQ(ring.row(11), memory + 12);
  EXPECT_EQ(ring.run_length(11), 5);
  EXPECT_EQ(ring.run_length(8), 8);
}

TEST(RowStore, DenseRowsOfTheKernelsTypeAreReadInPlace) {
  const auto in_place = [](row_format format, index_t row_bytes, row_rotation wanted = row_rotation::none) {
    row_store<float> store;
    store.format = format;
    store.dim = 20;
    store.row_bytes = row_bytes;
    return readable_in_place(store, wanted);
  };
  EXPECT_TRUE(in_place(row_format::f32, 80));
  EXPECT_TRUE(in_place(row_format::f32, 128));   // a row of a cache, padded
  EXPECT_FALSE(in_place(row_format::f32, 160));  // two heads a token
  EXPECT_FALSE(in_place(row_format::f32, 80, row_rotation::to_zero));
  EXPECT_FALSE(in_place(row_format::f32, 80, row_rotation::to_position));
  EXPECT_FALSE(in_place(row_format::f64, 80));
  EXPECT_FALSE(in_place(row_format::f16, 40));
}

TEST(RowStore, RowsInRunsAreNot) {
  row_store<float> store;
  store.dim = 20;
  store.row_bytes = 80;
  EXPECT_TRUE(readable_in_place(store, row_rotation::none));
  store.in_runs = true;
  EXPECT_FALSE(readable_in_place(store, row_rotation::none));
}

// Pairs are words: each begins at a multiple of 4 bytes.
TEST(RowStore, PairsAreReadInPlaceWhereTheyAreWords) {
  alignas(4) static const unsigned char memory[256] = {};
  const auto in_place = [](index_t dim, index_t row_bytes, index_t head_bytes, index_t first_byte) {
    row_store<float> store;
    store.format = row_format::bf16;
    store.data = memory + first_byte;
    store.dim = dim;
    store.row_bytes = row_bytes;
    store.head_bytes = head_bytes;
    return readable_in_place(store, row_rotation::none, true);
  };
  EXPECT_TRUE(in_place(20, 40, 80, 0));
  EXPECT_FALSE(in_place(19, 40, 80, 0));
  EXPECT_FALSE(in_place(20, 42, 80, 0));
  EXPECT_FALSE(in_place(20, 40, 82, 0));
  EXPECT_FALSE(in_place(20, 40, 80, 2));
  EXPECT_FALSE(in_place(20, 80, 160, 0));  // two heads a token
}
