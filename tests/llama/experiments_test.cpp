// The parts of the experiments, on tiny models and texts.
#include "experiments/chart.hpp"
#include "experiments/nll_by_position.hpp"
#include "text_files.hpp"

#include "llama/tiny_model.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

namespace {

using namespace llama;
using namespace llama::experiments;

TEST(BegunAnew, EachByteIsGivenHalfATrainingLengthToAllOfIt) {
  const tiny::model made =
      tiny::llama_model({{"vocab_size", 257}, {"bos_token_id", 256}, {"max_position_embeddings", 8}});
  const std::string config = made.config.dump(), file = tiny::safetensors(made.tensors);
  const tiny::loaded model(config, file);
  std::vector<token> tokens = {256};
  for (int i = 0; i < 30; ++i) tokens.push_back(i * 53 % 256);
  progress silent(1, false);
  const std::vector<float> nats = surprises_begun_anew(*model, tokens, silent);
  ASSERT_EQ(nats.size(), 30u);
  for (std::size_t i = 0; i < nats.size(); ++i) {
    const std::size_t first = i < 8 ? 0 : (i - 4) / 4 * 4;  // of the bytes: pieces of 8 begin at 0, 4, 8, ...
    std::vector<token> given = {256};
    for (std::size_t j = first; j < i; ++j) given.push_back(tokens[j + 1]);
    stream text(*model, {}, 100);
    EXPECT_NEAR(nats[i], surprise(text.next_logits(given), tokens[i + 1]), 1e-5) << i;
  }
}

TEST(NllTable, DifferencesAreMeansOverBytes) {
  const nll_table a{"a", {{0, 1, 5, 9}, {0, 1, 1, 1}}}, b{"b", {{9, 1, 2, 3}, {9, 0, 0, 0}}};
  const std::vector<double> differences = a.differences_from(b, 1);  // 1, 2 and 4 bytes in every 7
  EXPECT_DOUBLE_EQ(differences[0], (1 * 0.0 + 2 * 3 + 4 * 6) / 7);
  EXPECT_DOUBLE_EQ(differences[1], 1);
  EXPECT_DOUBLE_EQ(a.at(2).mean, 3);
  EXPECT_DOUBLE_EQ(a.at(2).standard_error, std::sqrt(8.0 / 2));
  EXPECT_EQ(statistics_of({4}).standard_error, 0);
}

TEST(TextFiles, DocumentsAreSpreadOverTheFolder) {
  const tiny::temporary_folder folder;
  for (const char c : std::string("abcdef")) std::ofstream(folder.path() + "/" + c) << std::string(c == 'c' ? 3 : 5, c);
  EXPECT_EQ(documents_below(folder.path(), 4, 10), (std::vector<std::string>{"aaaa", "bbbb", "dddd", "eeee", "ffff"}));
  EXPECT_EQ(documents_below(folder.path(), 4, 2), (std::vector<std::string>{"aaaa", "dddd"}));
  EXPECT_EQ(tiny::refusal([&] { documents_below(folder.path(), 6, 2); }),
            folder.path() + ": expected files of at least 6 bytes");
  EXPECT_EQ(tiny::refusal([&] { documents_below(folder.path() + "/none", 6, 2); }),
            folder.path() + "/none: expected a folder");
}

TEST(TextFiles, SourcesAreCutIntoDocumentsOfAscii) {
  const tiny::temporary_folder folder;
  std::ofstream(folder.path() + "/a") << "ab\xce\x9b";
  std::ofstream(folder.path() + "/b") << "cdefg";
  EXPECT_EQ(sources_below(folder.path(), 3, 9), (std::vector<std::string>{"abc", "def"}));
  EXPECT_EQ(sources_below(folder.path(), 3, 1), std::vector<std::string>{"abc"});
  EXPECT_NE(tiny::refusal([&] { sources_below(folder.path(), 8, 1); }), "accepted");
}

TEST(Chart, ScriptsQuoteWhatTheyAreGiven) {
  chart drawn;
  drawn.title = "a_b";
  drawn.x = {1, 2};
  drawn.x_names = {"1", "2"};
  drawn.lines = {{"with", {3, 4}, {0.1, 0.2}}, {"without", {5}, {}}};
  const std::string script = script_of(drawn, "it's.svg");
  EXPECT_NE(script.find("set output 'it''s.svg'"), std::string::npos);
  EXPECT_NE(script.find("a\\\\_b"), std::string::npos);
  EXPECT_NE(script.find("1 3 0.1\n2 4 0.2\n"), std::string::npos);
  EXPECT_NE(script.find("$line0 using 1:2:3 with yerrorlines"), std::string::npos);
  EXPECT_NE(script.find("$line1 using 1:2 with linespoints"), std::string::npos);
  EXPECT_EQ(script.find("training length"), std::string::npos);
  drawn.training_length = 2;
  EXPECT_NE(script_of(drawn, "a").find("'training length' at 2"), std::string::npos);
}

TEST(Shell, RunsWhatIsQuotedAndTellsOfFailure) {
  EXPECT_EQ(output_of("printf %s " + quoted("it's $HOME")), "it's $HOME");
  EXPECT_EQ(tiny::refusal([] { output_of("exit 3"); }), "this failed: exit 3");
}

}  // namespace
