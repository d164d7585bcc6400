// What slows attention over a whole sequence down? Each case has the common one before it to compare with: gflops counts
// visible pairs only.
#include "support/prefill.hpp"

#include <lambda_attention/position/rope.hpp>

#include <string>

namespace {

using bench::index_t;
using bench::prefill_setting;

template <class Change>
void add(const char* name, Change&& change) {
  prefill_setting given;
  change(given);
  bench::add_prefill<float>(bench::prefill_name<float>(given) + "/case:" + name, given,
                            lambda_attention::rope(given.head_dim));
}

}  // namespace

int main(int argc, char** argv) {
  add("common", [](prefill_setting&) {});
  add("logits_of_sigma_40", [](auto& given) { given.inputs.logit_sigma = 40; });
  // Maxima are replaced every 49 keys: 70 / log2(e).
  add("ascending_logits", [](auto& given) { given.inputs.ascent = 1; });
  for (const index_t window : {128, 256}) add("narrow_window", [&](auto& given) { given.window = window; });
  for (const index_t head_dim : {80, 40}) add("odd_head_dim", [&](auto& given) { given.head_dim = head_dim; });
  for (const index_t tokens : {64, 65, 1025}) add("just_above_a_tile", [&](auto& given) { given.tokens = tokens; });
  add("odd_sinks_and_window", [](auto& given) {
    given.num_sinks = 3;
    given.window = 1021;
  });
  return bench::run_benchmarks(argc, argv);
}
