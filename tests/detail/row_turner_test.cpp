#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace la = lambda_attention;
using la::index_t;
using la::detail::row_turner;

namespace {

constexpr la::isa_level levels[] = {la::isa_level::baseline,    la::isa_level::avx2,        la::isa_level::avx512,
                                    la::isa_level::avx512_vnni, la::isa_level::avx512_bf16, la::isa_level::amx_bf16};

template <class Real>
struct angles {
  alignas(la::detail::buffer_alignment) Real numbers[3 * row_turner<Real>::max_angle_count];
};

// 1, 2, 3, ... turned to `position`.
template <class Real>
std::vector<Real> turned(const la::position_data& data, index_t dim, std::uint64_t position, la::isa_level level) {
  angles<Real> memory;
  row_turner<Real> turner(la::detail::kernels_for<Real>(level), data, dim, memory.numbers);
  std::vector<Real> row, result(static_cast<std::size_t>(dim));
  for (index_t d = 0; d < dim; ++d) row.push_back(static_cast<Real>(d + 1));
  turner.move_to(position - 1, 3);
  turner.turn(row.data(), result.data(), 1);
  return result;
}

template <class Real>
class RowTurner : public ::testing::Test {};
using reals = ::testing::Types<float, double>;

// Adds the position to the first element.
struct counter {
  template <class Real>
  void turn(std::uint64_t position, Real* row, index_t) const noexcept {
    row[0] += static_cast<Real>(position);
  }
};

}  // namespace

TYPED_TEST_SUITE(RowTurner, reals);

TYPED_TEST(RowTurner, TurnsPairsByTheirAngles) {
  for (const la::isa_level level : levels) {
    if (level > la::highest_isa()) continue;
    for (const la::pair_layout layout : {la::pair_layout::half_split, la::pair_layout::interleaved}) {
      for (const index_t pairs : {1, 3, 8, 16, 33, 256}) {
        const index_t dim = pairs == 256 ? 512 : 2 * pairs + 3;  // elements behind the pairs stay
        const la::rope position(dim, 10000, {layout, 2 * pairs, 1.5});
        const std::uint64_t at = 12345;
        const std::vector<TypeParam> row = turned<TypeParam>(position.data(), dim, at, level);
        for (index_t p = 0; p < pairs; ++p) {
          const bool half_split = layout == la::pair_layout::half_split;
          const index_t a = half_split ? p : 2 * p, b = half_split ? p + pairs : 2 * p + 1;
          const double phase = static_cast<double>(at * position.data().rotation.turns[p]) * 0x1p-64;
          const double cosine = 1.5 * std::cos(6.283185307179586 * phase),
                       sine = 1.5 * std::sin(6.283185307179586 * phase);
          const double x = static_cast<double>(a + 1), y = static_cast<double>(b + 1);
          const double tolerance = (x + y) * (sizeof(TypeParam) == 8 ? 3e-15 : 3e-7);
          ASSERT_NEAR(row[static_cast<std::size_t>(a)], x * cosine - y * sine, tolerance) << name_of(level) << p;
          ASSERT_NEAR(row[static_cast<std::size_t>(b)], y * cosine + x * sine, tolerance) << name_of(level) << p;
        }
        for (index_t d = 2 * pairs; d < dim; ++d) ASSERT_EQ(row[static_cast<std::size_t>(d)], d + 1);
      }
    }
  }
}

// A turn phase wraps around after 2^64: no position is special, and whole turns are none.
TYPED_TEST(RowTurner, PhasesWrapAround) {
  const double eighth_turn = std::atan(1.0);
  const la::rope position(2, &eighth_turn, 1);
  for (const la::isa_level level : levels) {
    if (level > la::highest_isa()) continue;
    for (std::uint64_t eighths = 0; eighths < 8; ++eighths) {
      const std::vector<TypeParam> near = turned<TypeParam>(position.data(), 2, eighths, level);
      const std::vector<TypeParam> far = turned<TypeParam>(position.data(), 2, eighths + 800, level);
      const double angle = static_cast<double>(eighths) * eighth_turn;
      EXPECT_NEAR(near[0], std::cos(angle) - 2 * std::sin(angle), 1e-6) << eighths;
      EXPECT_NEAR(near[1], 2 * std::cos(angle) + std::sin(angle), 1e-6) << eighths;
      EXPECT_NEAR(far[0], near[0], 1e-6) << eighths;
      EXPECT_NEAR(far[1], near[1], 1e-6) << eighths;
    }
  }
}

TYPED_TEST(RowTurner, PositionZeroIsTheFactor) {
  const la::rope position(8, 10000, {la::pair_layout::half_split, 4, 3});
  const std::vector<TypeParam> row = turned<TypeParam>(position.data(), 8, 0, la::isa_level::automatic);
  EXPECT_EQ(row, (std::vector<TypeParam>{3, 6, 9, 12, 5, 6, 7, 8}));
}

// The angles of several positions at once are those of each alone.
TYPED_TEST(RowTurner, MovesFromPositionsToPositions) {
  const la::rope position(20);
  angles<TypeParam> many_memory, one_memory;
  row_turner<TypeParam> many(la::detail::kernels_for<TypeParam>(la::isa()), position.data(), 20, many_memory.numbers);
  row_turner<TypeParam> one(la::detail::kernels_for<TypeParam>(la::isa()), position.data(), 20, one_memory.numbers);
  const std::vector<TypeParam> row(20, 1);
  for (const std::uint64_t first : {5U, 6U, 5U, 0U}) {
    for (const index_t count : {1, 3, 1, 2}) {
      many.move_to(first, count);
      for (index_t i = 0; i < count; ++i) {
        std::vector<TypeParam> a(20), b(20);
        many.turn(row.data(), a.data(), i);
        one.move_to(first + static_cast<std::uint64_t>(i));
        one.turn(row.data(), b.data());
        EXPECT_EQ(a, b) << first << " + " << i;
      }
    }
  }
}

// Rows that have been through the rotation are turned on, or back, and keep the factor that they have.
TYPED_TEST(RowTurner, TurnsOnAndBack) {
  const la::rope position(20, 10000, {la::pair_layout::half_split, 12, 1.5});
  const std::vector<TypeParam> at_7 = turned<TypeParam>(position.data(), 20, 7, la::isa());
  const std::vector<TypeParam> at_19 = turned<TypeParam>(position.data(), 20, 19, la::isa());
  const std::vector<TypeParam> at_0 = turned<TypeParam>(position.data(), 20, 0, la::isa());
  angles<TypeParam> memory;
  row_turner<TypeParam> turner(la::detail::kernels_for<TypeParam>(la::isa()), position.data(), 20, memory.numbers);
  const auto expect_near = [&](const std::vector<TypeParam>& from, index_t i, const std::vector<TypeParam>& to) {
    std::vector<TypeParam> row(20);
    turner.turn(from.data(), row.data(), i);
    for (std::size_t d = 0; d < row.size(); ++d)
      EXPECT_NEAR(static_cast<double>(row[d]), static_cast<double>(to[d]), sizeof(TypeParam) == 4 ? 2e-5 : 1e-13) << d;
  };
  turner.move_on_by(11, 2);
  expect_near(at_7, 1, at_19);
  turner.move_to(12, 1);  // the same positions, with the factor
  turner.move_on_by(12, 1);
  expect_near(at_7, 0, at_19);
  turner.move_on_by(static_cast<std::uint64_t>(-8), 3);
  expect_near(at_7, 1, at_0);
  turner.move_on_by(static_cast<std::uint64_t>(-12));
  expect_near(at_19, 0, at_7);
}

TYPED_TEST(RowTurner, CallsRowFunctions) {
  const counter encoding;
  la::position_data data;
  data.function = la::row_function_of(encoding);
  const std::vector<TypeParam> row = turned<TypeParam>(data, 3, 70, la::isa_level::automatic);
  EXPECT_EQ(row, (std::vector<TypeParam>{71, 2, 3}));
}

TYPED_TEST(RowTurner, CopiesWhereThereIsNoRotation) {
  const std::vector<TypeParam> row = turned<TypeParam>(la::none().data(), 3, 70, la::isa_level::automatic);
  EXPECT_EQ(row, (std::vector<TypeParam>{1, 2, 3}));
}
