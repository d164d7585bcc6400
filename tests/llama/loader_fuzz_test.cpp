// Tens of thousands of damaged models: each is computed with or refused, and none makes the loader allocate much.
#include "fuzz_target.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <map>
#include <string>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LLAMA_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define LLAMA_SANITIZED
#endif
#endif

namespace {
std::atomic<std::size_t> largest_allocation{0};

void note_allocation(const volatile void*, std::size_t bytes) {
  if (bytes > largest_allocation) largest_allocation = bytes;
}
}  // namespace

// All memory that a model is loaded into: operator new and Eigen's own both ask malloc for it.
#if defined(LLAMA_SANITIZED)
#include <sanitizer/allocator_interface.h>
namespace {
void note_free(const volatile void*) {}
const int counted = __sanitizer_install_malloc_and_free_hooks(note_allocation, note_free);
}  // namespace
#elif defined(__GLIBC__)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t bytes) noexcept {
  note_allocation(nullptr, bytes);
  return __libc_malloc(bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  note_allocation(nullptr, bytes);
  return __libc_memalign(alignment, bytes);
}
}
namespace {
const int counted = 1;
}
#else
namespace {
const int counted = 0;
}
#endif

namespace {

// A JSON value is sixteen bytes and may be two of text; vectors double.
std::size_t allowed(const tiny::sample& s) { return (1 << 20) + 64 * (s.config.size() + s.file.size()); }

TEST(LoaderFuzz, AllocationsAreSeen) {
  if (counted == 0) GTEST_SKIP() << "this C library's malloc is not watched";
  largest_allocation = 0;
  const std::string text(12345678, 'x');
  EXPECT_GE(largest_allocation, 12345678u) << text[0];
  largest_allocation = 0;
  const Eigen::RowVectorXf row(2345678);
  EXPECT_GE(largest_allocation, 4 * 2345678u) << row.size();
}

TEST(LoaderFuzz, SamplesLoad) {
  for (const tiny::sample& s : tiny::samples()) {
    largest_allocation = 0;
    EXPECT_EQ(tiny::try_to_load(s.config, s.file), "") << s.config;
    EXPECT_LE(largest_allocation, allowed(s));
  }
}

TEST(LoaderFuzz, DamagedModelsLoadOrAreRefused) {
  const std::uint64_t seed = 20231122;
  const int count = 30000;
  int loaded = 0, refused = 0;
  std::size_t most = 0;
  std::map<std::string, int> beginnings;
  tiny::mutator mutator(seed);
  for (int i = 0; i < count; ++i) {
    tiny::sample s = tiny::samples()[mutator.below(tiny::samples().size())];
    mutator.mutate(s);
    SCOPED_TRACE("mutation " + std::to_string(i));
    largest_allocation = 0;
    std::string message;
    ASSERT_NO_THROW(message = tiny::try_to_load(s.config, s.file)) << s.config;
    ASSERT_LE(largest_allocation, allowed(s)) << message << "\n" << s.config;
    most = std::max<std::size_t>(most, largest_allocation);
    ++(message.empty() ? loaded : refused);
    ++beginnings[message.substr(0, 24)];
  }
  std::printf("seed %llu: %d loaded, %d refused in %zu ways, largest allocation %zu bytes\n",
              static_cast<unsigned long long>(seed), loaded, refused, beginnings.size(), most);
  EXPECT_GT(loaded, 0);
  EXPECT_GT(refused, 0);
}

}  // namespace
