// Independent pieces of work, shared out to OpenMP's threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace llama {

/// Calls f(0) ... f(count - 1), each once, in any order, on up to `threads` threads. The first exception reaches the
/// caller; calls that have not begun by then are left out.
template <class Function>
void for_each_in_parallel(std::int64_t count, int threads, Function&& f) {
  std::exception_ptr first_failure;  // an exception that leaves a parallel region would end the program
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    if (failed) continue;
    try {
      f(i);
    } catch (...) {
      if (!failed.exchange(true)) first_failure = std::current_exception();
    }
  }
  if (first_failure) std::rethrow_exception(first_failure);
}

}  // namespace llama
