// The program's models compute what transformers computes with the same files (golden.py).
#include "commands.hpp"
#include "load_model.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using namespace llama;

struct golden {
  explicit golden(const std::string& name)
      : file(std::string(LLAMA_TESTS) + "/golden/" + name + ".safetensors"),
        tensors(parse_safetensors(file.bytes(), name)) {}

  std::vector<float> numbers(const char* name) const {
    const std::string_view bytes = tensors.at(name).bytes;
    std::vector<float> result(bytes.size() / sizeof(float));
    std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
  }
  std::vector<token> tokens(const char* name) const {
    std::vector<token> result;
    for (const float number : numbers(name)) result.push_back(static_cast<token>(number));
    return result;
  }

  mapped_file file;
  std::map<std::string, stored_tensor> tensors;
};

std::string folder_of(const std::string& name) {
  const std::string trained = std::string(LLAMA_MODELS) + "/" + name;
  return std::filesystem::exists(trained) ? trained : std::string(LLAMA_TESTS) + "/models/" + name;
}

class Golden : public testing::TestWithParam<const char*> {};

// Within the training length every policy is full attention; chunks are of any size.
TEST_P(Golden, LogitsAreThoseOfTransformers) {
  const golden expected(GetParam());
  const loaded_model loaded(folder_of(GetParam()));
  const language_model& model = loaded.model();
  const std::vector<token> tokens = expected.tokens("tokens");
  const std::vector<float> logits = expected.numbers("logits");
  const auto [least, most] = std::minmax_element(logits.begin(), logits.end());
  const double range = *most - *least;
  const std::size_t every = tokens.size() / (logits.size() / static_cast<std::size_t>(model.shape().vocabulary));
  ASSERT_EQ(every, 8u);

  for (const auto& [name, attention] : policies) {
    attention_settings settings;
    settings.attention = attention;
    settings.sinks = 0;  // streaming-llm's window counts its sinks
    stream text(model, settings, 256);
    double largest = 0;
    std::size_t row = 0;
    for (std::size_t first = 0, chunk = 1; first < tokens.size(); first += chunk, chunk = chunk % 31 + 6) {
      const std::size_t last = std::min(tokens.size(), first + chunk);
      text.read(
          {tokens.begin() + static_cast<std::ptrdiff_t>(first), tokens.begin() + static_cast<std::ptrdiff_t>(last)},
          false, [&](std::int64_t, const matrix& x) {
            const matrix computed = model.logits(x);
            for (std::size_t i = first; i < last; ++i)
              if (i % every == every - 1) {
                const float* other = logits.data() + row++ * static_cast<std::size_t>(computed.cols());
                for (Eigen::Index j = 0; j < computed.cols(); ++j)
                  largest =
                      std::max<double>(largest, std::abs(computed(static_cast<Eigen::Index>(i - first), j) - other[j]));
              }
          });
    }
    EXPECT_EQ(row, tokens.size() / every);
    EXPECT_LE(largest, 1e-3 * range) << name;
    RecordProperty(name, std::to_string(largest / range));
    std::printf("%s, %s: largest difference of a logit %.1e of the range\n", GetParam(), name.c_str(), largest / range);
  }
}

TEST_P(Golden, TwoHundredTokensAreThoseOfTransformers) {
  const golden expected(GetParam());
  const loaded_model loaded(folder_of(GetParam()));
  const std::vector<token> tokens = expected.tokens("tokens"), greedy = expected.tokens("greedy");
  ASSERT_EQ(greedy.size(), 200u);
  std::vector<token> computed;
  stream text(loaded.model(), {}, 256);
  generate(text, {tokens.begin(), tokens.begin() + 40}, 200, 0, 0, [&](token next) { computed.push_back(next); });
  EXPECT_EQ(computed, greedy);
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::Values("llama", "llama-sink", "mpt", "llama-random", "mpt-random"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
