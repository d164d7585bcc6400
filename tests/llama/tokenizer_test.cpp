#include "tokenizer.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "tiny_model.hpp"

namespace {

using llama::make_tokenizer;
using llama::token;
using tiny::contains;

struct model_of_size {
  explicit model_of_size(std::int64_t vocabulary) {
    const tiny::model made = tiny::llama_model({{"vocab_size", vocabulary}});
    file = tiny::safetensors(made.tensors);
    model = std::make_unique<tiny::loaded>(made.config.dump(), file);
  }
  std::string file;
  std::unique_ptr<tiny::loaded> model;
};

std::string said_of(const std::string& folder, std::int64_t vocabulary) {
  const model_of_size sized(vocabulary);
  return tiny::refusal([&] { make_tokenizer(folder, **sized.model); });
}

TEST(Tokenizer, Bytes) {
  const tiny::temporary_folder folder;
  const model_of_size sized(256);
  const auto words = make_tokenizer(folder.path(), **sized.model);
  EXPECT_EQ(words->encode("a\n\xc3\xa9"), (std::vector<token>{97, 10, 0xc3, 0xa9}));
  EXPECT_TRUE(words->encode("").empty());
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(words->decode(words->encode(all)), all);
  EXPECT_EQ(words->decode(std::vector<token>{97, 256, 259, 98}), "ab");
}

TEST(Tokenizer, BytesAreForModelsOfBytes) {
  const tiny::temporary_folder folder;
  for (const int size : {256, 257, 260}) EXPECT_EQ(said_of(folder.path(), size), "accepted");
  for (const int size : {8, 255, 261, 1000})
    EXPECT_EQ(said_of(folder.path(), size), folder.path() + ": no tokenizer.model, and " + std::to_string(size) +
                                                " tokens are not bytes: give token ids");
}

TEST(Tokenizer, ATokenizerModelThatCannotBeRead) {
  const tiny::temporary_folder folder;
  for (const char* bytes : {"", "not a model", "\x0a\xff\xff\xff\xff\x0f", "\x0a\x02\x0a\x7f"}) {
    const std::string path = folder.add("tokenizer.model", bytes);
    EXPECT_PRED2(contains, said_of(folder.path(), 256), path + ": ");
  }
#ifndef LLAMA_WITH_SENTENCEPIECE
  EXPECT_PRED2(contains, said_of(folder.path(), 256), "built without SentencePiece");
#endif
}

#ifdef LLAMA_WITH_SENTENCEPIECE
// A tokenizer as Llama's, see tokenizer_golden.py: an unknown piece, BOS, EOS, 256 bytes, and pieces of text.
class SentencePiece : public testing::Test {
 protected:
  const std::string folder = LLAMA_TESTS "/golden/tokenizer";
  const model_of_size sized{512};
  const std::unique_ptr<llama::tokenizer> words = make_tokenizer(folder, **sized.model);
};

TEST_F(SentencePiece, TokensAreThoseOfSentencePieceItself) {
  std::ifstream file(folder + "/encoded.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_EQ(golden.size(), 6u);
  for (const auto& each : golden) {
    const std::string text = each["text"];
    EXPECT_EQ(words->encode(text), each["ids"].get<std::vector<token>>()) << text;
    EXPECT_EQ(words->decode(words->encode(text)), text.empty() ? "" : " " + text);  // a space begins every text
  }
}

TEST_F(SentencePiece, TokensThatAreNoText) {
  EXPECT_EQ(words->decode(std::vector<token>{-1, 1, 2, 512, 100000}), "");
  EXPECT_EQ(words->decode(token{3 + 'a'}), "a");
  EXPECT_EQ(words->decode(token{3 + 0xff}), "\xff");
}

TEST_F(SentencePiece, GoesOnWithTokensOfAModel) {
  llama::stream text(**sized.model, {}, 100);
  std::string said;
  llama::generate(text, words->encode("The function"), 20, 1.0, 7, [&](token next) { said += words->decode(next); });
  EXPECT_FALSE(said.empty());
}
#endif

}  // namespace
