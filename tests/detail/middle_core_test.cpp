#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/middle_core.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/storage/f32.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

namespace {

using core = la::detail::middle_core<float>;

// Rows of which every number tells its token, its head and its dim.
std::vector<float> rows(index_t tokens, index_t heads, index_t dim, float first) {
  std::vector<float> numbers(static_cast<std::size_t>(tokens * heads * dim));
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = first + static_cast<float>(i % 8191);
  return numbers;
}

void write(core& middle, const std::vector<float>& k, const std::vector<float>& v, index_t tokens) {
  const core::geometry& g = middle.shape();
  middle.reserve(middle.num_tokens() + tokens);
  const index_t first = middle.num_tokens();
  middle.write(
      la::detail::kernels_for<float>(la::isa_level::automatic), la::none().data(),
      la::detail::erase(la::token_major(k.data(), first + tokens, g.num_kv_heads, g.head_dim).slice(first, tokens)),
      la::detail::erase(la::token_major(v.data(), first + tokens, g.num_kv_heads, g.v_head_dim).slice(first, tokens)));
  middle.commit(tokens);
}

bool same_row(const la::detail::row_store<float>& store, index_t head, index_t token, const float* expected) {
  const auto* const row = reinterpret_cast<const float*>(store.run_from(head, token).first_row);
  return std::equal(row, row + store.dim, expected);
}

}  // namespace

// Pages of 20 KiB to 8 MiB: blocks that double and blocks that are as large as they get.
TEST(MiddleCore, KeepsRowsAndBoundsWhateverTheBlocks) {
  for (const auto& [heads, dim, tokens] :
       {std::array<index_t, 3>{1, 40, 3000}, {3, 300, 1300}, {8, 512, 700}, {32, 512, 300}}) {
    SCOPED_TRACE(std::to_string(heads) + " heads of " + std::to_string(dim));
    const index_t v_dim = dim / 2;
    core middle({la::sliding_window(1), heads, dim, v_dim}, la::detail::functions_of<la::f32>());
    const std::vector<float> k = rows(tokens, heads, dim, -4000), v = rows(tokens, heads, v_dim, 1);
    while (middle.num_tokens() < tokens) write(middle, k, v, std::min<index_t>(100, tokens - middle.num_tokens()));
    for (index_t token = 0; token < tokens; ++token) {
      const index_t page = token / core::page_tokens;
      const auto keys = middle.keys(page), values = middle.values(page);
      for (index_t head = 0; head < heads; ++head) {
        ASSERT_TRUE(same_row(keys, head, token, k.data() + (token * heads + head) * dim)) << "key " << token;
        ASSERT_TRUE(same_row(values, head, token, v.data() + (token * heads + head) * v_dim)) << "value " << token;
      }
      const index_t rest_of_page = std::min((page + 1) * core::page_tokens, tokens) - token;
      ASSERT_GE(keys.run_from(0, token).num_rows, rest_of_page) << "a page lies in one run";
      ASSERT_GE(values.run_from(0, token).num_rows, rest_of_page);
    }
    for (index_t page = 0; page < middle.num_pages(); ++page)
      for (index_t d = 0; d < dim; ++d) {
        float largest = -HUGE_VALF, smallest = HUGE_VALF;
        for (index_t token = page * core::page_tokens; token < std::min((page + 1) * core::page_tokens, tokens);
             ++token) {
          const float number = k[static_cast<std::size_t>((token * heads + heads - 1) * dim + d)];
          largest = std::max(largest, number);
          smallest = std::min(smallest, number);
        }
        const float* const bounds = middle.bounds_of(heads - 1, page);
        ASSERT_EQ(bounds[d], largest) << "page " << page;
        ASSERT_EQ(bounds[middle.padded_dim() + d], smallest) << "page " << page;
      }
  }
}

// Twice what is used, and the last of the largest blocks.
TEST(MiddleCore, HoldsLittleMoreThanItUses) {
  constexpr index_t heads = 2, dim = 64, bytes_of_token = heads * 2 * dim * 4;
  core middle({la::sliding_window(1), heads, dim, dim}, la::detail::functions_of<la::f32>());
  const index_t empty = middle.bytes();
  EXPECT_LT(empty, 1024);
  for (index_t tokens = 1; tokens < 200000; tokens = tokens * 5 / 4 + 1) {
    middle.reserve(tokens);
    const index_t used = tokens * bytes_of_token, page = core::page_tokens * bytes_of_token;
    const index_t bounds = 4 * (tokens / core::page_tokens + 1) * heads * 2 * dim * 2;
    EXPECT_LE(middle.bytes() - empty - bounds, used + std::min<index_t>(used, 8 << 20) + 2 * page + 4096) << tokens;
  }
}
