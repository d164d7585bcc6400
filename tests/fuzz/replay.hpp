// The inputs of a fuzzer without it: its corpus, and random ones.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "input.hpp"

namespace fuzz {

/// Calls use(data, size) with every file of tests/fuzz/corpus/<fuzzer>.
template <class Use>
void for_each_of_corpus(const char* fuzzer, Use&& use) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(FUZZ_CORPUS) + "/" + fuzzer)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    try {
      use(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    } catch (const std::exception& error) {
      ADD_FAILURE() << entry.path() << ": " << error.what();
    }
    ++count;
  }
  EXPECT_GT(count, 0);
}

/// Whether somebody looks for the reason of a failure.
inline bool runs_one_case() { return std::getenv("LAMBDA_ATTENTION_FUZZ_CASE") != nullptr; }

/// Calls use(case) for so many cases. LAMBDA_ATTENTION_FUZZ_CASE=n runs case n alone; a failure prints its n.
template <class Use>
void for_each_case(std::uint64_t count, Use&& use) {
  const auto run = [&](std::uint64_t number) {
    try {
      use(number);
    } catch (const std::exception& error) {
      ADD_FAILURE() << "LAMBDA_ATTENTION_FUZZ_CASE=" << number << ": " << error.what();
    }
  };
  if (const char* const number = std::getenv("LAMBDA_ATTENTION_FUZZ_CASE"))
    return run(std::strtoull(number, nullptr, 10));
  for (std::uint64_t number = 0; number < count; ++number) run(number);
}

}  // namespace fuzz
