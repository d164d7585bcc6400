// A model of bytes that anyone may have written: it is computed with, or refused in a line. And mutations of such
// bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tiny_model.hpp"

namespace tiny {

/// Loads a model and computes logits with it: "" where it could, the message where it was refused. Nothing else may
/// come of it.
inline std::string try_to_load(std::string_view config, std::string_view file) {
  const auto checked = [](const std::string& message) {
    if (message.empty() || contains(message, "\n")) throw std::logic_error("not one line: \"" + message + "\"");
    return message;
  };
  try {
    const loaded model(config, file);
    llama::stream(*model, {}, 4).next_logits({0, 1, 2});
    return "";
  } catch (const llama::error& refusal) {
    return checked(refusal.what());
  } catch (const std::invalid_argument& refusal) {  // of the library
    return checked(refusal.what());
  }
}

struct sample {
  std::string config, file;
};

/// Tiny models, whole.
inline const std::vector<sample>& samples() {
  static const std::vector<sample> all = [] {
    using llama::element;
    const json llama3 = {{"rope_type", "llama3"},   {"factor", 8.0},        {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0}, {"rope_theta", 1000.0}, {"original_max_position_embeddings", 8}};
    const json yarn = {{"type", "yarn"}, {"factor", 4.0}, {"beta_fast", 32}, {"attention_factor", 1.5}};
    std::vector<sample> list;
    const auto add = [&](const model& made, element type, std::size_t gap = 0) {
      list.push_back({made.config.dump(), safetensors(made.tensors, type, gap)});
    };
    add(llama_model(), element::f32);
    add(llama_model({{"rope_parameters", llama3}, {"head_dim", 6}, {"bos_token_id", 1}}), element::bf16);
    add(llama_model({{"model_type", "qwen2"}, {"rope_scaling", yarn}, {"tie_word_embeddings", true}}), element::f16, 1);
    add(llama_model({{"attention_bias", true}, {"mlp_bias", true}}), element::bf16, 3);
    add(mpt_model(), element::f32, 1);
    add(mpt_model({{"attn_config", {{"softmax_scale", 0.5}}}, {"logit_scale", nullptr}}), element::f16);
    return list;
  }();
  return all;
}

/// Changes a sample in one place or a few; the same numbers of a generator make the same changes.
class mutator {
 public:
  explicit mutator(std::uint64_t seed) : generator_(seed) {}

  std::size_t below(std::size_t limit) {
    return static_cast<std::size_t>(generator_() % std::max<std::size_t>(limit, 1));
  }

  void mutate(sample& s) {
    for (std::size_t changes = 1 + below(2) * below(3); changes > 0; --changes) {
      switch (below(8)) {
        case 0:
          change_length(s.file);
          break;
        case 1:
          change_bytes(s.file);
          break;
        case 2:
        case 3:
        case 4:
          change_header(s.file);
          break;
        default:
          change_text(s.config);
      }
    }
  }

 private:
  // What a value of JSON may become.
  static const std::vector<std::string>& values() {
    static const std::vector<std::string> all = {"0",
                                                 "1",
                                                 "2",
                                                 "3",
                                                 "4",
                                                 "6",
                                                 "7",
                                                 "8",
                                                 "12",
                                                 "16",
                                                 "255",
                                                 "-1",
                                                 "-0",
                                                 "0.0",
                                                 "0.5",
                                                 "1e300",
                                                 "1e-300",
                                                 "-1e300",
                                                 "1e999",
                                                 "65536",
                                                 "1048576",
                                                 "16777216",
                                                 "268435456",
                                                 "2147483648",
                                                 "4294967296",
                                                 "4611686018427387904",
                                                 "9223372036854775807",
                                                 "9223372036854775808",
                                                 "18446744073709551615",
                                                 "18446744073709551616",
                                                 "null",
                                                 "true",
                                                 "false",
                                                 "\"\"",
                                                 "\"F16\"",
                                                 "\"BF16\"",
                                                 "\"F32\"",
                                                 "\"I64\"",
                                                 "\"mpt\"",
                                                 "\"llama\"",
                                                 "\"linear\"",
                                                 "\"yarn\"",
                                                 "[]",
                                                 "{}",
                                                 "[0,0]",
                                                 "[8,8]",
                                                 "[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]"};
    return all;
  }

  static bool of_number(char c) { return (c >= '0' && c <= '9') || c == '-' || c == '.' || c == 'e' || c == '+'; }

  void change_text(std::string& text) { below(3) == 0 ? change_bytes(text) : change_value(text); }

  // In place of a number, or of true, false or null, another value; of a number, sometimes, one of its neighbours.
  void change_value(std::string& text) {
    std::size_t at = below(text.size());
    while (at < text.size() && !(of_number(text[at]) && text[at] != 'e')) ++at;
    std::size_t end = at;
    while (end < text.size() && of_number(text[end])) ++end;
    if (at == end) return change_bytes(text);
    const std::string number = text.substr(at, end - at);
    const bool small = number.size() < 9 && number.find_first_not_of("0123456789") == std::string::npos;
    const bool neighbour = small && below(3) == 0;
    text.replace(at, end - at,
                 neighbour ? std::to_string(std::stol(number) + static_cast<long>(below(9)) - 4)
                           : values()[below(values().size())]);
  }

  void change_bytes(std::string& bytes) {
    const std::size_t at = below(bytes.size() + 1), other = below(bytes.size() + 1), count = 1 + below(1 + below(64));
    switch (below(5)) {
      case 0:  // a bit
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:  // a cut
        if (below(4) == 0)
          bytes.resize(at);
        else
          bytes.erase(at, count);
        break;
      case 2:  // any bytes
        for (std::size_t i = 0; i < count; ++i) bytes.insert(at, 1, static_cast<char>(below(256)));
        break;
      case 3:  // some of its own
        bytes.insert(at, bytes.substr(other, count));
        break;
      default: {  // some of another's
        const sample& donor = samples()[below(samples().size())];
        const std::string& from = below(2) == 0 ? donor.config : donor.file;
        bytes.replace(at, below(count), from.substr(below(from.size()), count));
      }
    }
  }

  // The header alone; most times its length is then made to say how long it has become.
  void change_header(std::string& file) {
    if (file.size() < 8) return change_bytes(file);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    length = std::min<std::uint64_t>(length, file.size() - 8);
    std::string header = file.substr(8, length);
    change_text(header);
    file.replace(8, length, header);
    if (below(8) != 0) file.replace(0, 8, length_field(header.size()));
  }

  void change_length(std::string& file) {
    if (file.size() < 8) return change_bytes(file);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    const std::uint64_t others[] = {
        0,           2,           length - 1, length + 1, length + 8, file.size() - 8, file.size() - 7,
        file.size(), 100'000'000, 1ull << 32, 1ull << 63, ~0ull,      ~0ull - 7,       generator_()};
    file.replace(0, 8, length_field(others[below(std::size(others))]));
  }

  std::mt19937_64 generator_;
};

}  // namespace tiny
