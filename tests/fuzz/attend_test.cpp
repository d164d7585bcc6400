// What the fuzzer of attend() has found interesting, and random calls.
#include "attend_target.hpp"

#include <cstdio>
#include <stdexcept>
#include <vector>

#include "replay.hpp"

namespace {

TEST(attend_fuzz, takes_its_corpus) { fuzz::for_each_of_corpus("attend", fuzz::try_to_attend); }

// Queries and outputs that agree with each other, and end far behind any memory.
TEST(attend_fuzz, refuses_tensors_that_no_memory_holds) {
  using namespace lambda_attention;
  std::vector<float> memory(2000);
  const auto at = [&](index_t first, index_t tokens, index_t num_heads, index_t token_stride, index_t head_stride) {
    return tensor_view<float>(memory.data() + first, tokens, num_heads, 1, token_stride, head_stride);
  };
  const auto is_refused = [&](index_t tokens, index_t num_heads, index_t token_stride, index_t head_stride) {
    EXPECT_THROW(attend(at(0, tokens, num_heads, token_stride, head_stride), at(900, 2, 1, 1, 1), at(950, 2, 1, 1, 1),
                        lm_infinite(1, 1), none(), at(1000, tokens, num_heads, token_stride, head_stride)),
                 std::invalid_argument)
        << tokens << " tokens, " << num_heads << " heads";
  };
  constexpr index_t far = (index_t{1} << 60) - 1, many = index_t{1} << 40;
  is_refused(1, 3, 0, far);
  is_refused(3, 1, far, 0);
  is_refused(2, 2, far, far - 1);
  is_refused(1, many, 0, 1);  // in less than years
  is_refused(many, 1, 1, 0);
}

TEST(attend_fuzz, takes_random_calls) {
  constexpr int count = 3000;
  int computed = 0;
  fuzz::for_each_case(count, [&](std::uint64_t number) {
    const auto bytes = fuzz::random_input(number, 128);
    computed += fuzz::try_to_attend(bytes.data(), bytes.size()) ? 1 : 0;
  });
  std::printf("%d of %d calls computed\n", computed, count);
  if (!fuzz::runs_one_case()) {
    EXPECT_TRUE(computed > count / 4 && computed < count * 3 / 4);
  }
}

}  // namespace
