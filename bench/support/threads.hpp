// Executors of a number of threads.
#pragma once

#include <lambda_attention/executor.hpp>

#ifdef _OPENMP
#include <lambda_attention/executor/openmp.hpp>
#endif

#include <thread>

namespace bench {

#ifdef _OPENMP

/// Threads that a bench may use: those of the machine.
inline int most_threads() { return static_cast<int>(std::thread::hardware_concurrency()); }

/// Calls use(executor). OpenMP's threads stay awake between calls; waking others takes as long as half a token.
template <class Use>
void with_threads(int num_threads, Use&& use) {
  if (num_threads == 1) return use(lambda_attention::serial_executor{});
  use(lambda_attention::openmp_executor(num_threads));
}

#else

inline int most_threads() { return 1; }

template <class Use>
void with_threads(int, Use&& use) {
  use(lambda_attention::serial_executor{});
}

#endif

}  // namespace bench
