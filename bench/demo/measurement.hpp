// One measurement in a process of its own: what it prints for the process that started it.
#pragma once

#include "../support/check.hpp"
#include "../support/memory.hpp"
#include "../support/timing.hpp"
#include "../support/visible.hpp"
#include "settings.hpp"

#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/tensor_view.hpp>

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace demo {

/// A line `name value`.
inline void tell(const char* name, double value) { std::printf("%s %.17g\n", name, value); }

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "linear_vs_quadratic: %s\n", message);
  std::exit(1);
}

/// Calls `attention` once and tells how much memory became resident on top of the inputs and the output.
template <class Function>
double first_call(Function&& attention) {
  const double before = bench::peak_resident_bytes();
  const double seconds = bench::thread_seconds_of(attention);
  tell("extra_bytes", bench::peak_resident_bytes() - before);
  return seconds;
}

/// Tells the median of up to 7 calls that take up to 2 seconds together; of a longer one, the time of its first call.
template <class Function>
void tell_time(double first_seconds, Function&& attention) {
  constexpr double patience = 2;
  std::vector<double> seconds;
  for (double spent = 0; spent + first_seconds <= patience && seconds.size() < 7; spent += seconds.back())
    seconds.push_back(bench::thread_seconds_of(attention));
  tell("seconds", seconds.empty() ? first_seconds : bench::median(seconds));
}

/// Ends the program unless rows from the beginning, the middle and the end of the output are those of the formula.
inline void check_rows(layer& inputs, const lambda_attention::lambda_shape& shape, const std::vector<float>& q,
                       const std::vector<float>& k) {
  const auto queries = lambda_attention::token_major(q.data(), inputs.tokens, num_heads, head_dim);
  const auto keys = lambda_attention::token_major(k.data(), inputs.tokens, num_kv_heads, head_dim);
  for (const index_t token : {index_t{1}, inputs.tokens / 2, inputs.tokens - 1}) {
    const bench::deviation deviation =
        bench::against_formula(queries, keys, inputs.values(), shape, position(), inputs.output(), token, 1);
    if (!deviation.within(bench::float_nmse_bound_of(bench::visible_keys(shape, token))))
      fail("an output row is not what the formula gives");
  }
}

/// Writes the output of the first `window` tokens to a file that the caller has open.
inline void write_first_rows(const layer& inputs, int file) {
  const char* data = reinterpret_cast<const char*>(inputs.out.data());
  std::size_t left = sizeof(float) * static_cast<std::size_t>(window * num_heads * head_dim);
  while (left > 0) {
    const ssize_t written = write(file, data, left);
    if (written <= 0) fail("could not pass the first rows on");
    data += written;
    left -= static_cast<std::size_t>(written);
  }
}

}  // namespace demo
