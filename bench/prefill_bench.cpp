// How fast is attention over a whole sequence, as a part of what the processor can do?
#include "support/prefill.hpp"
#include "support/threads.hpp"

namespace {

using bench::index_t;
using bench::prefill_setting;
using lambda_attention::isa_level;

template <class T>
void add(const prefill_setting& given) {
  bench::add_prefill<T>(bench::prefill_name<T>(given), given, lambda_attention::rope(given.head_dim));
}

/// The common setting, with one thing changed.
template <class Change>
prefill_setting with(Change&& change) {
  prefill_setting given;
  change(given);
  return given;
}

void add_all() {
  add<float>({});
  add<double>({});
  add<bench::half>({});
  add<bench::bfloat16>({});
  add<float>(with([](auto& given) { given.window = 4096; }));
  add<bench::bfloat16>(with([](auto& given) { given.window = 4096; }));
  for (const index_t head_dim : {64, 96, 256}) add<float>(with([&](auto& given) { given.head_dim = head_dim; }));
  for (const index_t num_kv_heads : {2, 1}) add<float>(with([&](auto& given) { given.num_kv_heads = num_kv_heads; }));
  for (const isa_level isa : {isa_level::baseline, isa_level::avx2})
    if (isa < lambda_attention::isa()) add<float>(with([&](auto& given) { given.isa = isa; }));
  const auto one_head = with([](auto& given) { given.num_heads = given.num_kv_heads = 1; });
  add<float>(one_head);
  for (prefill_setting given : {prefill_setting{}, one_head}) {
    given.num_threads = bench::most_threads();
    if (given.num_threads > 1) add<float>(given);
  }
}

}  // namespace

int main(int argc, char** argv) {
  add_all();
  return bench::run_benchmarks(argc, argv);
}
