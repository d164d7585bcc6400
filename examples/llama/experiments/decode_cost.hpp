// What one more token costs after a long prompt: time, and memory. Each measurement is a run of the program llama, a
// process of its own, as a user would start it.
#pragma once

#include "../error.hpp"
#include "../json.hpp"
#include "shell.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace llama::experiments {

struct decode_cost {
  double seconds_per_token;
  double cache_bytes, peak_memory_bytes;
};

/// The median in each field.
inline decode_cost median_of(std::vector<decode_cost> costs) {
  decode_cost median{};
  for (const auto field :
       {&decode_cost::seconds_per_token, &decode_cost::cache_bytes, &decode_cost::peak_memory_bytes}) {
    const auto middle = costs.begin() + static_cast<std::ptrdiff_t>(costs.size() / 2);
    std::nth_element(costs.begin(), middle, costs.end(), [&](auto& a, auto& b) { return a.*field < b.*field; });
    median.*field = (*middle).*field;
  }
  return median;
}

/// Of `tokens` tokens after a prompt of `length`, which is repeated text; one thread, keys and values in float.
inline decode_cost decode_cost_at(const std::string& program, const std::string& model, const std::string& attention,
                                  std::int64_t length, std::int64_t tokens, const std::string& text) {
  const std::filesystem::path prompt =
      std::filesystem::temp_directory_path() / ("llama_prompt_" + std::to_string(::getpid()));
  {
    std::ofstream file(prompt, std::ios::binary);
    for (std::int64_t written = 0; written < length; written += static_cast<std::int64_t>(text.size()))
      file << text.substr(0, static_cast<std::size_t>(length - written));
  }
  const std::string output =
      output_of(quoted(program) + " generate " + quoted(model) + " --json --threads 1 --attention " + attention +
                " --tokens " + std::to_string(tokens) + " --prompt-file " + quoted(prompt.string()));
  std::filesystem::remove(prompt);
  const json object = parse_object(output, program);
  const json_reader result(object, program);
  return {result.number("seconds_per_token"), result.number("cache_bytes"), result.number("peak_memory_bytes")};
}

}  // namespace llama::experiments
