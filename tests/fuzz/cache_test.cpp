// What the fuzzer of caches has found interesting, and random programs.
#include "cache_target.hpp"

#include <cstdio>

#include "replay.hpp"

namespace {

TEST(cache_fuzz, takes_its_corpus) { fuzz::for_each_of_corpus("cache", fuzz::try_caches); }

TEST(cache_fuzz, takes_random_programs) {
  constexpr int count = 2000;
  fuzz::index_t rows = 0;
  fuzz::for_each_case(count, [&](std::uint64_t number) {
    const auto bytes = fuzz::random_input(number, 256);
    rows += fuzz::try_caches(bytes.data(), bytes.size());
  });
  std::printf("%lld rows of %d programs compared\n", static_cast<long long>(rows), count);
  if (!fuzz::runs_one_case()) {
    EXPECT_GT(rows, 5 * count);
  }
}

}  // namespace
