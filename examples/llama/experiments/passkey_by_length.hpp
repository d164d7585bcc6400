// How often a passkey is found, by the length of what hides it.
#pragma once

#include "../commands.hpp"
#include "../parallel.hpp"
#include "../report.hpp"

#include <omp.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace llama::experiments {

struct passkey_reader {
  std::string name;
  policy attention;
  std::int64_t top_k = 0;
};

inline std::vector<passkey_reader> all_passkey_readers() {
  return {{"full attention", policy::full},
          {"LM-Infinite", policy::lm_infinite},
          {"LM-Infinite, top-5 of the middle", policy::lm_infinite, 5}};
}

struct passkey_result {
  share_of found, found_outside_window;
};

/// Of `trials` prompts, each by one thread. They depend on the seed and the length alone.
inline passkey_result passkey_at(const language_model& model, const passkey_reader& how, std::int64_t length,
                                 std::int64_t trials, std::uint64_t seed, progress& shown) {
  const byte_tokenizer words;
  std::seed_seq both{seed, static_cast<std::uint64_t>(length)};
  std::mt19937_64 generator(both);
  std::vector<passkey_prompt> prompts;
  for (std::int64_t i = 0; i < trials; ++i) prompts.push_back(make_passkey_prompt(model, words, length, generator));

  attention_settings settings;
  settings.attention = how.attention;
  settings.top_k = how.top_k;
  std::vector<char> right(prompts.size());
  for_each_in_parallel(trials, omp_get_max_threads(), [&](std::int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    right[index] = finds_passkey(model, words, settings, prompts[index]);
    shown.advance(length);
  });
  passkey_result result;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    result.found.add(right[i] != 0);
    if (prompts[i].tokens_after >= model.shape().training_length) result.found_outside_window.add(right[i] != 0);
  }
  return result;
}

}  // namespace llama::experiments
