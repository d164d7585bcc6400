// What the program can do with a model: go on with a text, score texts, and look for a passkey.
#pragma once

#include "language_model.hpp"
#include "progress.hpp"
#include "tokenizer.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace llama {

/// Tokens of the newest part of a prompt that look into the middle too, where --top-k is given: what was asked, likely.
constexpr std::size_t question_tokens = 64;

inline std::vector<token> with_bos(const language_model& model, std::vector<token> tokens) {
  if (model.shape().bos) tokens.insert(tokens.begin(), *model.shape().bos);
  if (tokens.empty()) fail("expected at least one token: the model has no BOS, and the text is empty");
  return tokens;
}

/// Reads a prompt, its last tokens as a question, and returns the logits of what follows.
inline Eigen::RowVectorXf read_prompt(stream& text, const std::vector<token>& prompt) {
  const auto question = prompt.end() - static_cast<std::ptrdiff_t>(std::min(prompt.size(), question_tokens));
  text.read({prompt.begin(), question}, false, [](auto&&...) {});
  return text.next_logits({question, prompt.end()}, true);
}

inline token most_likely(const Eigen::RowVectorXf& logits) {
  Eigen::Index best = 0;
  logits.maxCoeff(&best);
  return static_cast<token>(best);
}

/// A token as likely as the model has it at a temperature; 0: the most likely one.
template <class Generator>
token sample(const Eigen::RowVectorXf& logits, double temperature, Generator& generator) {
  if (temperature == 0) return most_likely(logits);
  const Eigen::ArrayXd powers = ((logits.cast<double>().array() - logits.maxCoeff()) / temperature).exp();
  std::discrete_distribution<token> likely(powers.data(), powers.data() + powers.size());
  return likely(generator);
}

/// Calls each(token) for tokens that follow the prompt, one after another.
template <class Function>
void generate(stream& text, const std::vector<token>& prompt, std::int64_t count, double temperature,
              std::uint64_t seed, Function&& each) {
  if (!(temperature >= 0)) fail("--temperature: expected a number from 0 on, got %g", temperature);
  std::mt19937_64 generator(seed);
  if (count < 1) return;
  Eigen::RowVectorXf logits = read_prompt(text, prompt);
  for (std::int64_t i = 0; i < count; ++i) {
    const token next = sample(logits, temperature, generator);
    each(next);
    if (i + 1 < count) logits = text.next_logits({next}, true);
  }
}

/// In nats, of what came, given the logits of all that could.
template <class Row>
float surprise(const Row& logits, token came) {
  const float largest = logits.maxCoeff();
  return std::log((logits.array() - largest).exp().sum()) - (logits[came] - largest);
}

/// The surprise of each token but the first, given those before it.
inline std::vector<float> surprises(const language_model& model, const attention_settings& settings,
                                    const std::vector<token>& tokens, progress& shown) {
  const std::vector<token> inputs(tokens.begin(), tokens.end() - 1);
  std::vector<float> nats;
  stream text(model, settings, static_cast<std::int64_t>(tokens.size()));
  text.read(inputs, false, [&](std::int64_t, const matrix& x) {
    const matrix logits = model.logits(x);
    for (Eigen::Index row = 0; row < logits.rows(); ++row)
      nats.push_back(surprise(logits.row(row), tokens[nats.size() + 1]));
    shown.advance(x.rows());
  });
  return nats;
}

/// A passkey in a text that says nothing else, the question at its end, and the answer.
struct passkey_prompt {
  std::vector<token> tokens;
  std::string key;
  std::int64_t tokens_after;  ///< between the key and the question's end
};

/// As long as said, in tokens; the key stands anywhere.
template <class Generator>
passkey_prompt make_passkey_prompt(const language_model& model, const tokenizer& words, std::int64_t length,
                                   Generator& generator) {
  static const char* const sentences[] = {"The grass is green. ", "The sky is blue. ", "The sun is yellow. ",
                                          "Here we go. ", "There and back again. "};
  char key[6];
  std::snprintf(key, sizeof key, "%05d", std::uniform_int_distribution<int>(0, 99999)(generator));
  const std::vector<token> statement = words.encode(std::string(" The pass key is ") + key + ". ");
  const std::vector<token> question = words.encode(" What is the pass key? The pass key is ");
  const auto others = static_cast<std::int64_t>(statement.size() + question.size()) + (model.shape().bos ? 1 : 0);
  if (length < others) fail("--length: expected at least %lld tokens", static_cast<long long>(others));
  const std::int64_t before = std::uniform_int_distribution<std::int64_t>(0, length - others)(generator);

  const auto filler = [&](std::int64_t count) {
    std::vector<token> tokens;
    while (static_cast<std::int64_t>(tokens.size()) < count) {
      const auto sentence = words.encode(sentences[std::uniform_int_distribution<int>(0, 4)(generator)]);
      tokens.insert(tokens.end(), sentence.begin(), sentence.end());
    }
    return std::vector<token>(tokens.end() - count, tokens.end());
  };
  passkey_prompt prompt{filler(before), key, length - others - before};
  const auto add = [&](const std::vector<token>& tokens) {
    prompt.tokens.insert(prompt.tokens.end(), tokens.begin(), tokens.end());
  };
  add(statement);
  add(filler(prompt.tokens_after));
  add(question);
  prompt.tokens = with_bos(model, std::move(prompt.tokens));
  prompt.tokens_after += static_cast<std::int64_t>(question.size());
  return prompt;
}

/// Whether the model's most likely tokens spell the key.
inline bool finds_passkey(const language_model& model, const tokenizer& words, const attention_settings& settings,
                          const passkey_prompt& prompt) {
  stream text(model, settings, static_cast<std::int64_t>(prompt.tokens.size() + prompt.key.size()));
  std::string answer;
  generate(text, prompt.tokens, static_cast<std::int64_t>(prompt.key.size()), 0, 0,
           [&](token next) { answer += words.decode(next); });
  return answer.find(prompt.key) != std::string::npos;
}

}  // namespace llama
