#include "commands.hpp"

#include "llama/tiny_model.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace llama;

struct Commands : testing::Test {
  tiny::model made = tiny::llama_model({{"vocab_size", 257}, {"bos_token_id", 256}});
  std::string config = made.config.dump(), file = tiny::safetensors(made.tensors);
  tiny::loaded model{config, file};
  byte_tokenizer words;
};

TEST_F(Commands, SurprisesAreThoseOfTheLogits) {
  const std::vector<token> tokens = {256, 7, 200, 13, 13, 99, 0, 255, 4, 42, 42};
  progress silent(1, false);
  const std::vector<float> nats = surprises(*model, {}, tokens, silent);
  ASSERT_EQ(nats.size(), tokens.size() - 1);
  for (std::size_t i = 0; i < nats.size(); ++i) {
    stream text(*model, {}, 100);
    const Eigen::RowVectorXd logits =
        text.next_logits({tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(i + 1)}).cast<double>();
    EXPECT_NEAR(nats[i], std::log(logits.array().exp().sum()) - logits[tokens[i + 1]], 1e-5) << i;
  }
}

TEST_F(Commands, SurprisesOfHugeLogitsAreFinite) {
  Eigen::RowVectorXf logits(3);
  logits << 1e30f, -1e30f, 1e30f;
  EXPECT_NEAR(surprise(logits, 0), std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isfinite(surprise(logits, 1)));
}

TEST_F(Commands, ATextLongerThanAChunkIsReadAsTokenByToken) {
  std::vector<token> tokens = {256};
  for (int i = 0; i < 1100; ++i) tokens.push_back(i * 37 % 256);
  stream at_once(*model, {}, 2000), one_by_one(*model, {}, 2000);
  Eigen::RowVectorXf last;
  for (const token each : tokens) last = one_by_one.next_logits({each});
  EXPECT_LE((at_once.next_logits(tokens) - last).norm(), 1e-4f * last.norm());
}

TEST_F(Commands, ATokenThatTheModelLacksIsRefused) {
  for (const token bad : {-1, 257}) {
    stream text(*model, {}, 10);
    try {
      text.next_logits({1, bad});
      FAIL() << bad;
    } catch (const error& problem) {
      EXPECT_EQ(std::string(problem.what()), "expected tokens from 0 to 256, got " + std::to_string(bad));
    }
  }
}

TEST_F(Commands, BosStandsFirst) {
  EXPECT_EQ(with_bos(*model, {1, 2}), (std::vector<token>{256, 1, 2}));
  EXPECT_EQ(with_bos(*model, {}), std::vector<token>{256});
  const tiny::model without = tiny::llama_model();
  const std::string without_config = without.config.dump(), without_file = tiny::safetensors(without.tensors);
  const tiny::loaded other(without_config, without_file);
  EXPECT_EQ(with_bos(*other, {1, 2}), (std::vector<token>{1, 2}));
  EXPECT_THROW(with_bos(*other, {}), error);
}

TEST_F(Commands, GeneratesTheMostLikelyTokens) {
  const std::vector<token> prompt = {256, 5, 6, 7};
  std::vector<token> generated, sequence = prompt;
  stream text(*model, {}, 100);
  generate(text, prompt, 20, 0, 1, [&](token next) { generated.push_back(next); });
  for (const token next : generated) {
    stream anew(*model, {}, 100);
    EXPECT_EQ(next, most_likely(anew.next_logits(sequence)));
    sequence.push_back(next);
  }
  EXPECT_EQ(generated.size(), 20u);
}

TEST_F(Commands, SamplesAsOftenAsLikely) {
  Eigen::RowVectorXf logits(3);
  logits << std::log(0.2f), std::log(0.5f), std::log(0.3f);
  std::mt19937_64 generator(1);
  int counts[3] = {};
  for (int i = 0; i < 20000; ++i) ++counts[sample(logits, 1, generator)];
  EXPECT_NEAR(counts[0], 4000, 300);
  EXPECT_NEAR(counts[1], 10000, 300);
  std::mt19937_64 cold(1);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sample(logits, 0.01, cold), 1);
}

TEST_F(Commands, TheSameSeedGivesTheSameText) {
  const auto text_of = [&](std::uint64_t seed) {
    std::vector<token> tokens;
    stream text(*model, {}, 100);
    generate(text, {256}, 30, 1, seed, [&](token next) { tokens.push_back(next); });
    return tokens;
  };
  EXPECT_EQ(text_of(1), text_of(1));
  EXPECT_NE(text_of(1), text_of(2));
}

TEST_F(Commands, PasskeyPromptsAreAsLongAsSaidAndHideTheKeyAnywhere) {
  std::mt19937_64 generator(3);
  std::set<std::int64_t> places;
  std::set<std::string> keys;
  for (int i = 0; i < 50; ++i) {
    const passkey_prompt prompt = make_passkey_prompt(*model, words, 500, generator);
    const std::string text = words.decode(prompt.tokens), question = " What is the pass key? The pass key is ";
    EXPECT_EQ(prompt.tokens.size(), 500u);
    EXPECT_EQ(prompt.tokens[0], 256);
    EXPECT_EQ(text.substr(text.size() - question.size()), question);
    const std::string statement = " The pass key is " + prompt.key + ". ";
    const std::size_t at = text.find(statement);
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(static_cast<std::int64_t>(text.size() - at - statement.size()), prompt.tokens_after);
    places.insert(prompt.tokens_after / 100);
    keys.insert(prompt.key);
  }
  EXPECT_EQ(places.size(), 5u);
  EXPECT_EQ(keys.size(), 50u);
  EXPECT_THROW(make_passkey_prompt(*model, words, 60, generator), error);
}

TEST_F(Commands, APasskeyThatTheModelDoesNotKnowIsNotFound) {
  std::mt19937_64 generator(4);
  EXPECT_FALSE(finds_passkey(*model, words, {}, make_passkey_prompt(*model, words, 100, generator)));
}

}  // namespace
