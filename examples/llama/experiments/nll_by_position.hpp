// How well bytes far from the beginning of a text are predicted, with each kind of attention.
#pragma once

#include "../commands.hpp"
#include "../parallel.hpp"
#include "../report.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace llama::experiments {

/// A way to read a text.
struct reader {
  std::string name;
  policy attention;
  bool begins_anew = false;  ///< every half training length, so that no token is beyond it: a control
};

inline std::vector<reader> all_readers() {
  return {{"full attention", policy::full},        {"window only", policy::window},
          {"sinks, no clamp", policy::no_clamp},   {"ReRoPE", policy::rerope},
          {"StreamingLLM", policy::streaming_llm}, {"LM-Infinite", policy::lm_infinite},
          {"begun anew", policy::full, true}};
}

struct mean_and_error {
  double mean = 0, standard_error = 0;
};

inline mean_and_error statistics_of(const std::vector<double>& numbers) {
  const auto count = static_cast<double>(numbers.size());
  double sum = 0, squares = 0;
  for (const double number : numbers) sum += number;
  for (const double number : numbers) squares += (number - sum / count) * (number - sum / count);
  return {sum / count, count > 1 ? std::sqrt(squares / (count - 1) / count) : 0};
}

/// Nats a byte of one reader: documents x ranges of positions, as position_bins has them.
struct nll_table {
  std::string reader;
  std::vector<std::vector<double>> documents;

  std::size_t ranges() const { return documents.at(0).size(); }
  mean_and_error at(std::size_t range) const {
    std::vector<double> column;
    for (const auto& document : documents) column.push_back(document[range]);
    return statistics_of(column);
  }
  /// Of each document, this less `other`: the mean over all bytes from a range on, ranges being twice as long as the
  /// one before.
  std::vector<double> differences_from(const nll_table& other, std::size_t first_range) const {
    std::vector<double> list;
    for (std::size_t i = 0; i < documents.size(); ++i) {
      double sum = 0, length = 0;
      for (std::size_t range = first_range; range < ranges(); ++range) {
        sum += std::exp2(range) * (documents[i][range] - other.documents[i][range]);
        length += std::exp2(range);
      }
      list.push_back(sum / length);
    }
    return list;
  }
};

/// The surprise of each byte given BOS and the L / 2 to L - 1 bytes before it, L the training length.
inline std::vector<float> surprises_begun_anew(const language_model& model, const std::vector<token>& tokens,
                                               progress& shown) {
  const auto length = static_cast<std::size_t>(model.shape().training_length), half = length / 2;
  attention_settings full;
  full.attention = policy::full;
  std::vector<float> nats;
  for (std::size_t first = 0; nats.size() + 1 < tokens.size(); first += half) {
    const std::size_t last = std::min(tokens.size(), first + 1 + length);
    std::vector<token> piece = {tokens[0]};
    piece.insert(piece.end(), tokens.begin() + static_cast<std::ptrdiff_t>(first + 1),
                 tokens.begin() + static_cast<std::ptrdiff_t>(last));
    const std::vector<float> of_piece = surprises(model, full, piece, shown);
    nats.insert(nats.end(), of_piece.begin() + static_cast<std::ptrdiff_t>(nats.size() - first), of_piece.end());
  }
  return nats;
}

/// Every reader over every document. Documents are shared out to the threads, each being read by one.
inline std::vector<nll_table> nll_by_position(const language_model& model, const std::vector<reader>& readers,
                                              const std::vector<std::string>& documents, bool with_progress) {
  std::vector<nll_table> tables;
  for (const reader& how : readers) tables.push_back({how.name, std::vector<std::vector<double>>(documents.size())});
  const byte_tokenizer words;
  std::int64_t bytes = 0;
  for (const std::string& document : documents) bytes += static_cast<std::int64_t>(document.size());
  const auto anew = std::count_if(readers.begin(), readers.end(), [](const reader& how) { return how.begins_anew; });
  progress shown(bytes * (static_cast<std::int64_t>(readers.size()) + anew), with_progress);

  const auto jobs = static_cast<std::int64_t>(readers.size() * documents.size());
  for_each_in_parallel(jobs, omp_get_max_threads(), [&](std::int64_t job) {
    const std::size_t which = static_cast<std::size_t>(job) / documents.size();
    const std::size_t document = static_cast<std::size_t>(job) % documents.size();
    attention_settings settings;
    settings.attention = readers[which].attention;
    const std::vector<token> tokens = with_bos(model, words.encode(documents[document]));
    position_bins bins(model.shape().training_length);
    bins.add(readers[which].begins_anew ? surprises_begun_anew(model, tokens, shown)
                                        : surprises(model, settings, tokens, shown));
    tables[which].documents[document] = bins.means();
  });
  return tables;
}

}  // namespace llama::experiments
