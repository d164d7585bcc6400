// What does each position encoding cost, on top of attention without one?
#include "support/prefill.hpp"

#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/t5_bias.hpp>

#include <string>
#include <vector>

namespace {

namespace la = lambda_attention;

template <class Position>
void add(const char* name, const Position& position) {
  const bench::prefill_setting given;
  bench::add_prefill<float>(bench::prefill_name<float>(given) + "/position:" + name, given, position);
}

la::rope interleaved(la::index_t head_dim) {
  la::rope_options options;
  options.layout = la::pair_layout::interleaved;
  return la::rope(head_dim, 10000, options);
}

la::t5_bias t5_bias(la::index_t num_heads) {
  constexpr la::index_t num_buckets = 32;
  const std::vector<float> weights = bench::normal_values<float>(num_buckets * num_heads, 4);
  return la::t5_bias(weights.data(), num_buckets, num_heads);
}

}  // namespace

int main(int argc, char** argv) {
  const bench::prefill_setting given;
  add("none", la::none());
  add("rope", la::rope(given.head_dim));
  add("rope_interleaved", interleaved(given.head_dim));
  add("alibi", la::alibi(given.num_heads));
  add("t5_bias", t5_bias(given.num_heads));
  return bench::run_benchmarks(argc, argv);
}
