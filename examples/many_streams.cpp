// A server's step: one call takes in the prompts of new conversations and the next token of each of the old ones, whatever their
// lengths, and its threads share the work of all of them.
#include <lambda_attention/executor/eigen_thread_pool.hpp>
#include <lambda_attention/lambda_attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace la = lambda_attention;
using la::index_t;

struct model {
  static constexpr index_t heads = 4, kv_heads = 2, head_dim = 32;
};

struct conversation {
  using cache_type = la::kv_cache<la::f16, la::rope>;
  cache_type cache{la::lm_infinite(4, 128), la::rope(model::head_dim), model::kv_heads, model::head_dim,
                   model::head_dim};
  std::vector<float> q, k, v, out;

  // Stands for projections of the next n tokens.
  void project(index_t n, double seed) {
    for (std::vector<float>* rows : {&q, &k, &v}) {
      rows->resize(static_cast<std::size_t>(n * (rows == &q ? model::heads : model::kv_heads) * model::head_dim));
      for (std::size_t i = 0; i < rows->size(); ++i)
        (*rows)[i] = static_cast<float>(std::sin(seed * static_cast<double>(i + 1)));
      seed *= 1.3;
    }
    out.resize(q.size());
  }
  auto step() {
    const index_t n = static_cast<index_t>(q.size()) / (model::heads * model::head_dim);
    return la::stream_step{la::token_major(q.data(), n, model::heads, model::head_dim),
                           la::token_major(k.data(), n, model::kv_heads, model::head_dim),
                           la::token_major(v.data(), n, model::kv_heads, model::head_dim), &cache,
                           la::token_major(out.data(), n, model::heads, model::head_dim)};
  }
};

int main() {
  std::vector<conversation> conversations(6);
  Eigen::ThreadPool pool(2);
  la::workspace scratch;
  la::attention_options options;
  options.workspace = &scratch;
  const auto tokens_of = [](std::size_t c, int round) {
    const int age = round - static_cast<int>(c);  // a new conversation every round
    return age < 0 ? index_t{0} : age == 0 ? index_t(40 + 70 * c) : index_t{1};
  };
  double worst = 0;
  index_t total = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<decltype(conversations[0].step())> steps;
    std::vector<conversation> alone = conversations;  // forks, for the comparison below
    for (std::size_t c = 0; c < conversations.size(); ++c) {
      conversations[c].project(tokens_of(c, round), 0.37 + 0.1 * static_cast<double>(c) + 0.01 * round);
      steps.push_back(conversations[c].step());
    }
    la::attend(steps.data(), static_cast<index_t>(steps.size()), options, la::eigen_thread_pool(pool));

    for (std::size_t c = 0; c < conversations.size(); ++c) {
      alone[c].q = conversations[c].q, alone[c].k = conversations[c].k, alone[c].v = conversations[c].v;
      alone[c].out.resize(alone[c].q.size());
      const auto step = alone[c].step();
      la::attend(&step, 1);
      for (std::size_t i = 0; i < alone[c].out.size(); ++i)
        worst = std::fmax(worst, std::abs(alone[c].out[i] - conversations[c].out[i]));
      total += tokens_of(c, round);
    }
  }
  std::printf("%d tokens of %d conversations in 20 calls; largest difference from each alone %.1e\n",
              static_cast<int>(total), static_cast<int>(conversations.size()), worst);
  return worst == 0 ? 0 : 1;
}
