// All that the demo measures, and what it prints of it.
#pragma once

#include "../support/check.hpp"
#include "../support/visible.hpp"
#include "child.hpp"
#include "prefill.hpp"
#include "settings.hpp"
#include "table.hpp"

#include <lambda_attention/isa.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace demo {

inline constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

struct method {
  double seconds = not_measured;
  double extra_bytes = not_measured;
};

/// What was found at one length.
struct length_results {
  index_t tokens;
  method naive, full, lambda;
  double unbounded_seconds = not_measured, kv_cache_seconds = not_measured;
  double unbounded_bytes = not_measured, kv_cache_bytes = not_measured;

  double pair_seconds() const { return lambda.seconds / bench::visible_pairs(demo::lambda(), tokens, num_heads); }
};

/// How Λ-attention differs from full attention on the first `window` tokens.
struct agreement {
  bench::deviation naive, full;
  double bound() const { return bench::largest_difference_bound(naive.rms()); }
  bool holds() const { return naive.largest() <= bound() && full.largest() <= bound(); }
};

struct results {
  std::vector<length_results> lengths;
  demo::agreement agreement;
  findings text;
};

/// How much a time varies over lengths: largest / smallest - 1.
template <class Time>
double variation(const std::vector<length_results>& lengths, index_t first, index_t last, Time&& time) {
  double least = HUGE_VAL, most = 0;
  for (const length_results& at : lengths) {
    if (at.tokens < first || at.tokens > last) continue;
    least = std::min(least, time(at));
    most = std::max(most, time(at));
  }
  return most / least - 1;
}

template <class Text>
std::string cell(double number, Text&& text) {
  return std::isnan(number) ? "-" : text(number);
}

inline void print_table(const std::vector<length_results>& lengths) {
  table shown({{"", 1},
               {"time of a sequence", 3},
               {"Λ faster than", 2},
               {"extra memory, MiB", 3},
               {"visible pairs", 2},
               {"decode, per token", 2}},
              {"tokens", "naive", "full", "Λ", "naive", "full", "naive", "full", "Λ", "Λ", "time each", "unbounded",
               "kv_cache"});
  for (const length_results& at : lengths) {
    const double pairs =
        at.tokens <= largest_tokens ? bench::visible_pairs(lambda(), at.tokens, num_heads) : not_measured;
    shown.add({std::to_string(at.tokens), cell(at.naive.seconds, time_text), cell(at.full.seconds, time_text),
               cell(at.lambda.seconds, time_text), cell(at.naive.seconds / at.lambda.seconds, times_text),
               cell(at.full.seconds / at.lambda.seconds, times_text), cell(at.naive.extra_bytes, mebibytes_text),
               cell(at.full.extra_bytes, mebibytes_text), cell(at.lambda.extra_bytes, mebibytes_text),
               cell(pairs, count_text), cell(at.pair_seconds(), time_text), cell(at.unbounded_seconds, time_text),
               cell(at.kv_cache_seconds, time_text)});
  }
  shown.print();
}

inline void print_heading() {
  std::printf(
      "\nΛ-attention, %d sinks, window %d, against full causal attention. %d heads over %d key/value heads,\n"
      "head_dim %d, RoPE, float, one thread, kernels for %s. Inputs are random normal numbers.\n\n",
      int{num_sinks}, int{window}, int{num_heads}, int{num_kv_heads}, int{head_dim},
      lambda_attention::name_of(lambda_attention::isa()));
}

inline void print_notes(const std::vector<length_results>& lengths) {
  std::printf(
      "\n"
      "naive     softmax(mask(Q K^T)) V with Eigen, one head's n x n matrix at a time, compiled for this machine;\n"
      "          its rotation of q and k is not counted\n"
      "full, Λ   the library: full_causal() and lm_infinite(%d, %d), rotation included\n"
      "time      processor time of the thread, median; long calls are made once\n"
      "memory    peak resident memory beyond q, k, v and the output, each method in a process of its own\n"
      "pairs     (query, key) pairs that Λ-attention visits, over all heads, and its time for each of them\n"
      "decode    append and attend one token at that stream length; rows kept as float. Caches at %d tokens:\n"
      "          unbounded %s, kv_cache %s\n"
      "bound     each side keeps NMSE <= 1e-11, so they differ by 2 sqrt(1e-11) of the output's root mean square;\n"
      "          a single difference is taken to be within six times that\n\n",
      int{num_sinks}, int{window}, int{largest_stream}, bytes_text(lengths.back().unbounded_bytes).c_str(),
      bytes_text(lengths.back().kv_cache_bytes).c_str());
}

/// A claim with the number it rests on. Returns whether it holds.
inline bool print_claim(bool holds, const std::string& claim) {
  std::printf("%-4s %s\n", holds ? "yes" : "NO", claim.c_str());
  return holds;
}

/// Whether Λ-attention is full attention within the window. The times below it are told, and never fail the demo: another
/// program may have taken the machine meanwhile.
inline bool print_claims(const results& found) {
  const agreement& rows = found.agreement;
  const bool agrees = print_claim(
      rows.holds(),
      format("the first %d tokens are full attention: largest difference %.1e from naive, %.1e from full; bound %.1e",
             int{window}, rows.naive.largest(), rows.full.largest(), rows.bound()));
  const double pair = variation(found.lengths, 4096, largest_tokens, [](const auto& at) { return at.pair_seconds(); });
  print_claim(pair <= 0.05,
              format("Λ is linear: time per visible pair varies by %.1f %% from %d to %d tokens; at most 5 %%",
                     100 * pair, 4096, int{largest_tokens}));
  const double token =
      variation(found.lengths, 4096, largest_stream, [](const auto& at) { return at.kv_cache_seconds; });
  print_claim(token <= 0.10,
              format("decoding is flat: time per token varies by %.1f %% from %d to %d tokens; at most 10 %%",
                     100 * token, 4096, int{largest_stream}));
  return agrees;
}

/// What a text read in pieces gave.
inline bool print_text_claims(const findings& text, const std::string& name, const char* words) {
  const double bound = bench::largest_difference_bound(text[name + "/rms"], text["variance"]);
  const double nmse_bound = bench::difference_nmse_bound(text["variance"]);
  const bool same =
      print_claim(text[name + "/largest"] <= bound && text[name + "/nmse"] <= nmse_bound,
                  format("%s: equals one call; largest difference %.1e, bound %.1e; NMSE %.1e, bound %.1e", words,
                         text[name + "/largest"], bound, text[name + "/nmse"], nmse_bound));
  const double grown = text[name + "/bytes_grown"], resident = text[name + "/resident_grown"];
  const bool constant =
      print_claim(grown == 0 && resident <= 1048576,
                  format("%s: after %d tokens the cache, %s, grew by %.0f bytes, resident memory by %.0f KiB", words,
                         int{4 * window}, bytes_text(text[name + "/bytes"]).c_str(), grown, resident / 1024));
  return same && constant;
}

}  // namespace demo
