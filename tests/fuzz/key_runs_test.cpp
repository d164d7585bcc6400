// What the fuzzer of runs has found interesting, and random runs.
#include "key_runs_target.hpp"

#include <cstdio>

#include "replay.hpp"

namespace {

TEST(key_runs_fuzz, takes_its_corpus) { fuzz::for_each_of_corpus("key_runs", fuzz::try_runs); }

TEST(key_runs_fuzz, takes_random_runs) {
  constexpr int count = 3000;
  int computed = 0;
  fuzz::for_each_case(count, [&](std::uint64_t number) {
    const auto bytes = fuzz::random_input(number, 160);
    computed += fuzz::try_runs(bytes.data(), bytes.size()) ? 1 : 0;
  });
  std::printf("%d of %d calls computed\n", computed, count);
  if (!fuzz::runs_one_case()) {
    EXPECT_TRUE(computed > count / 4 && computed < count);
  }
}

}  // namespace
