// The experiments, shortened, on the models of this project: each fails where its effect disappears.
#include "load_model.hpp"
#include "text_files.hpp"

#include "experiments/endless_stream.hpp"
#include "experiments/nll_by_position.hpp"
#include "experiments/passkey_by_length.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using namespace llama;
using namespace llama::experiments;

const std::string models = LLAMA_MODELS;
constexpr std::size_t first_beyond =
    3;  // the range of positions from the training length to twice that, of position_bins

std::vector<nll_table> read_held_out(const language_model& model, const std::vector<reader>& readers) {
  return nll_by_position(model, readers, documents_below(models + "/held_out", 1024, 2), false);
}

/// Mean difference beyond the training length, in nats.
double beyond(const nll_table& table, const nll_table& other) {
  return statistics_of(table.differences_from(other, first_beyond)).mean;
}

double level_beyond(const nll_table& table) {
  nll_table zeros = table;
  for (auto& document : zeros.documents) std::fill(document.begin(), document.end(), 0);
  return beyond(table, zeros);
}

class LengthGeneralization : public testing::TestWithParam<const char*> {
 protected:
  loaded_model loaded{models + "/" + GetParam()};
  const language_model& model = loaded.model();
};

TEST_P(LengthGeneralization, LmInfiniteStaysAsGoodAsATextBegunAnew) {
  const auto tables = read_held_out(model, {{"LM-Infinite", policy::lm_infinite}, {"anew", policy::full, true}});
  EXPECT_LE(beyond(tables[0], tables[1]), 0.03 * level_beyond(tables[1]));
  for (std::size_t range = 0; range < first_beyond; ++range)
    EXPECT_NEAR(tables[0].at(range).mean, tables[1].at(range).mean, 1e-5);
}

TEST_P(LengthGeneralization, WithinTheTrainingLengthAllAreFullAttention) {
  auto readers = all_readers();
  readers.pop_back();  // begun anew
  const auto tables = nll_by_position(model, readers, documents_below(models + "/held_out", 256, 2), false);
  for (const nll_table& table : tables)
    for (std::size_t range = 0; range < table.ranges(); ++range)
      EXPECT_NEAR(table.at(range).mean, tables[0].at(range).mean, 1e-4) << table.reader;
}

INSTANTIATE_TEST_SUITE_P(Models, LengthGeneralization, testing::Values("llama", "llama-sink", "mpt"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class RopeModel : public LengthGeneralization {};

TEST_P(RopeModel, ExplodesWithoutTheMaskAndWithoutTheLimit) {
  const auto tables = read_held_out(
      model, {{"LM-Infinite", policy::lm_infinite}, {"full", policy::full}, {"no clamp", policy::no_clamp}});
  EXPECT_GT(beyond(tables[1], tables[0]), 1.5);
  EXPECT_GT(beyond(tables[2], tables[0]), 0.3);
}

TEST_P(RopeModel, FindsPasskeysInTheMiddleWithTopKAlone) {
  progress silent(1, false);
  const auto found_outside = [&](const passkey_reader& how) {
    return passkey_at(model, how, 640, 6, 1, silent).found_outside_window.share();
  };
  EXPECT_GE(found_outside({"top-5", policy::lm_infinite, 5}), 0.8);
  EXPECT_EQ(found_outside({"LM-Infinite", policy::lm_infinite}), 0);
  EXPECT_EQ(found_outside({"full", policy::full}), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, RopeModel, testing::Values("llama", "llama-sink"),
                         [](const auto& test) { return std::string(test.param) == "llama" ? "llama" : "llama_sink"; });

TEST(SinkModel, IsWorseWithoutItsSinks) {
  const loaded_model loaded(models + "/llama-sink");
  const auto tables = read_held_out(loaded.model(), {{"LM-Infinite", policy::lm_infinite}, {"window", policy::window}});
  EXPECT_GT(beyond(tables[1], tables[0]), 0.2);
}

TEST(EndlessStream, IsConstantAndRight) {
  const loaded_model loaded(models + "/llama");
  const std::string text = documents_below(models + "/held_out", 4096, 1)[0];
  const stream_result result = read_endless_stream(loaded.model(), {}, byte_tokenizer().encode(text), 5120, false);
  ASSERT_EQ(result.samples.size(), 10u);
  for (const stream_sample& sample : result.samples) EXPECT_EQ(sample.cache_bytes, result.samples[0].cache_bytes);
  EXPECT_LE(result.largest_error, 1e-11);
  EXPECT_GT(result.largest_error, 0);
}

}  // namespace
