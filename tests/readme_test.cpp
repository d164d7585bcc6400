// The README is true: its C++ is the C++ below, letter for letter, its picture is that of lambda_shape, its links lead
// somewhere. Its first C++ block is a whole program, built and run as one of the examples.
#include <lambda_attention/lambda_attention.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace la = lambda_attention;

// README {
struct engine_half {  // 16 bits, IEEE binary16, from your engine
  std::uint16_t bits;
};
template <>
struct lambda_attention::element_traits<engine_half> {
  static constexpr auto kind = element_kind::f16;
};
// README }

namespace {

const std::filesystem::path project = std::filesystem::path(__FILE__).parent_path().parent_path();

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// What stands between `begin` and `end`, each time that both occur.
std::vector<std::string> between(const std::string& text, const std::string& begin, const std::string& end) {
  std::vector<std::string> found;
  for (std::size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at)) {
    at += begin.size();
    const std::size_t last = text.find(end, at);
    if (last == std::string::npos) break;
    found.push_back(text.substr(at, last - at));
  }
  return found;
}

// The text without the indentation of its first line, on every line, and without blank ends.
std::string unindented(std::string text) {
  const std::string indentation = text.substr(0, text.find_first_not_of(' '));
  if (!indentation.empty())
    for (std::size_t at = 0; at != std::string::npos; at = text.find('\n', at)) {
      if (at > 0) ++at;
      if (text.compare(at, indentation.size(), indentation) == 0) text.erase(at, indentation.size());
    }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.pop_back();
  return text;
}

TEST(readme, blocks_are_code_of_this_test) {
  std::vector<std::string> blocks = between(text_of(project / "README.md"), "```cpp\n", "```");
  ASSERT_GT(blocks.size(), 1u);
  EXPECT_NE(blocks[0].find("int main()"), std::string::npos) << "the first block is a whole program";
  blocks.erase(blocks.begin());
  const std::string comment = "// README ";
  std::vector<std::string> code = between(text_of(__FILE__), comment + "{\n", comment + "}");
  for (std::vector<std::string>* texts : {&blocks, &code}) {
    std::transform(texts->begin(), texts->end(), texts->begin(), unindented);
    std::sort(texts->begin(), texts->end());
  }
  EXPECT_EQ(blocks, code);
}

TEST(readme, calls_compute) {
  constexpr la::index_t n = 9, heads = 4, kv_heads = 2, head_dim = 16;
  std::vector<float> numbers(n * heads * head_dim, 0.5f), result(numbers.size()), other_result(numbers.size());
  const auto q = la::token_major(numbers.data(), n, heads, head_dim);
  const auto k = la::token_major(numbers.data(), n, kv_heads, head_dim), v = k;
  const auto out = la::token_major(result.data(), n, heads, head_dim);
  const auto other_q = q.slice(0, 3), other_k = k.slice(0, 3), other_v = other_k;
  const auto other_out = la::token_major(other_result.data(), 3, heads, head_dim);
  // A mean of equal numbers is that number. Takes it away, too, for the next call to write it anew.
  const auto all_halves = [](const la::tensor_view<float>& rows) {
    float* const first = rows.data;
    float* const last = first + rows.tokens * rows.heads * rows.dim;
    const bool halves = std::all_of(first, last, [](float x) { return x > 0.499f && x < 0.501f; });
    std::fill(first, last, 0.0f);
    return halves;
  };

  // README {
  la::attend(q, k, v, la::lm_infinite(16, 4096), la::rope(head_dim), out);
  // README }
  EXPECT_TRUE(all_halves(out));

  // README {
  la::kv_cache<la::bf16, la::rope> cache(la::lm_infinite(16, 4096), la::rope(head_dim), kv_heads, head_dim, head_dim);
  la::attend(q, k, v, cache, out);

  auto fork = cache;         // a copy is an independent stream with the same past
  la::append(k, v, fork);    // attend() in two halves, for prefixes that are shared
  la::attend(q, fork, out);  // and for layers that share keys
  // README }
  EXPECT_TRUE(all_halves(out));
  EXPECT_EQ(cache.num_tokens(), n);
  EXPECT_EQ(fork.num_tokens(), 2 * n);

  std::stringstream file;
  // README {
  fork.rewind(2);    // the newest two tokens are taken back: of a draft, say, that was rejected
  cache.save(file);  // to any std::ostream
  fork.load(file);   // from any std::istream, once what it holds is known to be whole and to fit
  // README }
  EXPECT_EQ(fork.num_tokens(), n);
  fork.clear();

  // README {
  la::attention_options options;
  options.soft_cap = 50;
  la::workspace scratch(la::scratch_bytes(cache, heads, n));  // for calls with up to n new tokens
  options.workspace = &scratch;
  la::attend(q, k, v, cache, out, options, la::serial_executor());
  // README }
  EXPECT_TRUE(all_halves(out));
  EXPECT_EQ(scratch.bytes(), la::workspace(la::scratch_bytes(cache, heads, n)).bytes()) << "it was enough";

  // README {
  const std::vector steps = {la::stream_step{q, k, v, &cache, out},
                             la::stream_step{other_q, other_k, other_v, &fork, other_out}};
  la::attend(steps.data(), 2, options, la::serial_executor());
  // README }
  EXPECT_TRUE(all_halves(out));
  EXPECT_TRUE(all_halves(other_out));

  std::vector<float> some_lse(n * heads), more_lse(n * heads);
  const auto more_out = la::token_major(other_result.data(), n, heads, head_dim);
  // README {
  const la::partial_result some = {out, la::token_major(some_lse.data(), n, heads, 1)};
  const la::partial_result more = {more_out, la::token_major(more_lse.data(), n, heads, 1)};
  la::attend_partial(q, k, v, la::lm_infinite(16, 4096), la::rope(head_dim), {0, 2}, some);              // keys 0 and 1
  la::attend_partial(q, k, v, la::lm_infinite(16, 4096), la::rope(head_dim), {2, la::unlimited}, more);  // all others
  la::merge(some, more, some);
  // README }
  EXPECT_TRUE(all_halves(out));

  // README {
  la::middle_store<la::bf16, la::rope> middle(cache.shape(), cache.position(), kv_heads, head_dim, head_dim);
  la::append(k, v, middle);  // what the cache is given too
  la::attend_partial(q, cache, {0, la::unlimited}, some);
  la::attend_top_k(q, middle, {5, 4096}, more);
  la::merge(some, more, some);  // one softmax over sinks, window and the best five
  // README }
  EXPECT_TRUE(all_halves(out));

  const auto newest_out = out.slice(n - 1, 1);
  // README {
  const std::vector runs = {la::key_run{3, k.slice(3, n - 3), v.slice(3, n - 3)},  // keys 3 ... n - 1
                            la::key_run{0, k.slice(0, 3), v.slice(0, 3)}};         // keys 0, 1 and 2
  const la::query_run newest = {n - 1, q.slice(n - 1, 1)};
  la::attend(newest, runs.data(), 2, la::lm_infinite(16, 4096), la::rope(head_dim), newest_out);
  // README }
  EXPECT_TRUE(all_halves(newest_out));
}

TEST(readme, element_type_joins) {
  std::vector<engine_half> one(8, engine_half{0x3c00}), out(8);
  const auto rows = la::token_major(one.data(), 2, 1, 4);
  la::attend(rows, rows, rows, la::sliding_window(2), la::none(), la::token_major(out.data(), 2, 1, 4));
  for (const engine_half& x : out) EXPECT_EQ(x.bits, 0x3c00);
}

TEST(readme, picture_is_that_of_the_shape) {
  const std::string readme = text_of(project / "README.md");
  const la::lambda_shape shape = la::lm_infinite(2, 4);
  for (la::index_t query = 0; query < 10; ++query) {
    std::string row = (query == 0 ? "\n    query " : "\n          ") + std::to_string(query) + "        ";
    for (la::index_t key = 0; key <= query; ++key)
      row += ' ' + (shape.visible(query, key) ? std::to_string(shape.distance(query, key)) : ".");
    const std::size_t at = readme.find(row);
    ASSERT_NE(at, std::string::npos) << row;
    const std::string after = readme.substr(at + row.size(), 2);
    EXPECT_TRUE(after[0] == '\n' || after == "  ") << row;
  }
}

TEST(readme, refusal_reads_as_it_says) {
  std::vector<float> q(6 * 4), k(4 * 4), out(6 * 4);
  try {
    la::attend(la::token_major(q.data(), 1, 6, 4), la::token_major(k.data(), 1, 4, 4),
               la::token_major(k.data(), 1, 4, 4), la::full_causal(), la::none(), la::token_major(out.data(), 1, 6, 4));
    FAIL() << "not refused";
  } catch (const std::invalid_argument& refusal) {
    EXPECT_NE(text_of(project / "README.md").find(std::string("\n    ") + refusal.what() + '\n'), std::string::npos)
        << refusal.what();
  }
}

TEST(readme, names_this_version) {
  const std::string version =
      std::to_string(LAMBDA_ATTENTION_VERSION_MAJOR) + '.' + std::to_string(LAMBDA_ATTENTION_VERSION_MINOR);
  EXPECT_NE(text_of(project / "README.md").find("find_package(lambda_attention " + version + " REQUIRED)"),
            std::string::npos);
}

TEST(readme, links_lead_somewhere) {
  const std::vector<std::string> links = between(text_of(project / "README.md"), "](", ")");
  EXPECT_GT(links.size(), 5u);
  for (const std::string& link : links) {
    const bool elsewhere = link.find("://") != std::string::npos;
    const bool drawn_by_the_demo = link == "bench/linear_vs_quadratic.svg";
    EXPECT_TRUE(elsewhere || drawn_by_the_demo || std::filesystem::exists(project / link)) << link;
  }
}

}  // namespace
