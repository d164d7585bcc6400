// What the fuzzer of files has found interesting, and files that were damaged, or made, at random.
#include "cache_file_target.hpp"

#include <cstdio>

#include "replay.hpp"

namespace {

fuzz::loading load(const std::uint8_t* data, std::size_t size) {
  return fuzz::cache_file::from({reinterpret_cast<const char*>(data), size}).load();
}

TEST(cache_file_fuzz, takes_its_corpus) { fuzz::for_each_of_corpus("cache_file", load); }

TEST(cache_file_fuzz, takes_whole_files) {
  fuzz::for_each_case(100, [&](std::uint64_t number) {
    fuzz::numbers random(number);
    EXPECT_EQ(fuzz::cache_file::whole(random).load(), fuzz::loading::loaded);
  });
}

TEST(cache_file_fuzz, takes_or_refuses_changed_files) {
  constexpr int count = 3000;
  int loaded = 0;
  fuzz::for_each_case(count, [&](std::uint64_t number) {
    fuzz::numbers random(number);
    fuzz::cache_file file = fuzz::cache_file::whole(random);
    fuzz::mutate(file, random);
    loaded += file.load() == fuzz::loading::loaded ? 1 : 0;
  });
  std::printf("%d of %d files loaded\n", loaded, count);
  if (!fuzz::runs_one_case()) {
    EXPECT_TRUE(loaded > count / 20 && loaded < count / 2);
  }
}

}  // namespace
