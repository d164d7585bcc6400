// Whole sequences by the library's kernel: full causal attention and Λ-attention.
#pragma once

#include "../support/timing.hpp"
#include "measurement.hpp"
#include "settings.hpp"

#include <lambda_attention/attention.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace demo {

inline void attend(layer& inputs, index_t tokens, const lambda_attention::lambda_shape& shape,
                   const lambda_attention::rope& encoding) {
  lambda_attention::attend(inputs.queries().slice(0, tokens), inputs.keys().slice(0, tokens),
                           inputs.values().slice(0, tokens), shape, encoding, inputs.output().slice(0, tokens));
}

/// A short call, so that the memory of the measured one does not include the program's own text.
inline void load_kernel() {
  layer inputs(64);
  attend(inputs, inputs.tokens, lambda(), position());
}

/// Memory of a call, its rows checked and passed on.
template <class Function>
double measure_first_call(layer& inputs, const lambda_attention::lambda_shape& shape, int rows_file, Function&& call) {
  const double seconds = first_call(call);
  check_rows(inputs, shape, inputs.q, inputs.k);
  write_first_rows(inputs, rows_file);
  return seconds;
}

inline void measure_full(index_t tokens, int rows_file) {
  load_kernel();
  layer inputs(tokens);
  const lambda_attention::rope encoding = position();
  const auto call = [&] { attend(inputs, tokens, lambda_attention::full_causal(), encoding); };
  tell_time(measure_first_call(inputs, lambda_attention::full_causal(), rows_file, call), call);
}

/// Memory and rows; measure_lambda_times() has the times.
inline void measure_lambda(index_t tokens, int rows_file) {
  load_kernel();
  layer inputs(tokens);
  const lambda_attention::rope encoding = position();
  tell("seconds", measure_first_call(inputs, lambda(), rows_file, [&] { attend(inputs, tokens, lambda(), encoding); }));
}

/// Λ-attention at every length in turn, several times over, so that noise meets all lengths alike.
inline void measure_lambda_times() {
  constexpr int rounds = 3;
  layer inputs(largest_tokens);
  const lambda_attention::rope encoding = position();
  std::vector<index_t> lengths;
  for (index_t n = smallest_tokens; n <= largest_tokens; n *= 2) lengths.push_back(n);
  std::vector<std::vector<double>> seconds(lengths.size());
  for (int round = 0; round < rounds; ++round) {
    std::fprintf(stderr, "         round %d of %d\n", round + 1, rounds);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      // A short call is repeated, so that every length is measured for about as long.
      for (index_t call = 0; call < std::min<index_t>(5, largest_tokens / lengths[i]); ++call)
        seconds[i].push_back(bench::thread_seconds_of([&] { attend(inputs, lengths[i], lambda(), encoding); }));
    }
  }
  for (std::size_t i = 0; i < lengths.size(); ++i)
    tell(("seconds/" + std::to_string(lengths[i])).c_str(), bench::median(seconds[i]));
}

}  // namespace demo
