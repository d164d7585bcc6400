// llama: goes on with a text, scores texts and looks for passkeys with a Llama-like or MPT model, and with the
// attention asked for.
#include "commands.hpp"
#include "load_model.hpp"
#include "report.hpp"
#include "text_files.hpp"

#include <CLI/CLI.hpp>

#include <omp.h>

#include <chrono>
#include <cstdio>
#include <iterator>
#include <map>
#include <new>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace llama;

struct options {
  std::string model, prompt, prompt_file;
  std::optional<std::string> ids;
  std::vector<std::string> files;
  attention_settings attention;
  std::int64_t tokens = 200, length = 1024, trials = 100;
  double temperature = 0;
  std::uint64_t seed = 0;
  bool as_json = false;
};

std::vector<token> parsed_ids(const std::string& text) {
  std::istringstream in(text);
  std::vector<token> tokens;
  while (in >> std::ws && !in.eof()) {
    tokens.emplace_back();
    if (!(in >> tokens.back())) fail("--ids: expected numbers with spaces between");
  }
  if (tokens.empty()) fail("--ids: expected at least one number");
  return tokens;
}

void run_generate(const options& chosen) {
  const loaded_model loaded(chosen.model);
  const language_model& model = loaded.model();
  const bool of_ids = chosen.ids.has_value();
  const auto words = of_ids ? nullptr : make_tokenizer(chosen.model, model);
  const std::string written = chosen.prompt_file.empty() ? chosen.prompt : contents(chosen.prompt_file);
  const std::vector<token> prompt = of_ids ? parsed_ids(*chosen.ids) : with_bos(model, words->encode(written));
  stream text(model, chosen.attention, static_cast<std::int64_t>(prompt.size()) + chosen.tokens);

  std::vector<token> kept;  // for --json alone, so that memory stays what it is however many come
  std::string said;
  std::int64_t count = 0;
  const stopwatch watch;
  double prompt_seconds = 0;
  generate(text, prompt, chosen.tokens, chosen.temperature, chosen.seed, [&](token next) {
    if (count++ == 0) prompt_seconds = watch.seconds();
    const std::string piece = of_ids ? std::to_string(next) + " " : words->decode(next);
    if (chosen.as_json) {
      kept.push_back(next);
      said += piece;
    } else {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    }
  });
  const double per_token =
      (watch.seconds() - prompt_seconds) / static_cast<double>(std::max<std::int64_t>(count - 1, 1));
  if (chosen.as_json)
    return print_json({{"prompt_tokens", prompt.size()},
                       {"tokens", kept},
                       {"text", said},
                       {"prompt_seconds", prompt_seconds},
                       {"seconds_per_token", per_token},
                       {"cache_bytes", text.bytes()},
                       {"peak_memory_bytes", peak_memory_bytes()}});
  std::fprintf(stderr, "\n[%lld tokens, %.2f ms a token; caches %.1f MB, at most %.1f MB resident]\n",
               static_cast<long long>(count), per_token * 1e3, static_cast<double>(text.bytes()) / 1e6,
               static_cast<double>(peak_memory_bytes()) / 1e6);
}

void run_perplexity(const options& chosen) {
  const loaded_model loaded(chosen.model);
  const language_model& model = loaded.model();
  const auto words = make_tokenizer(chosen.model, model);
  std::vector<std::vector<token>> texts;
  std::int64_t tokens = 0, bytes = 0;
  for (const std::string& file : chosen.files) {
    const std::string text = contents(file);
    texts.push_back(with_bos(model, words->encode(text)));
    if (texts.back().size() < 2) fail("%s: expected a text of at least two tokens", file.c_str());
    tokens += static_cast<std::int64_t>(texts.back().size());
    const std::string unscored = model.shape().bos ? "" : words->decode(texts.back()[0]);
    bytes += static_cast<std::int64_t>(text.size() - unscored.size());
  }
  progress shown(tokens, !chosen.as_json);
  position_bins all(model.shape().training_length);
  json documents = json::array();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    position_bins bins(model.shape().training_length);
    const std::vector<float> nats = surprises(model, chosen.attention, texts[i], shown);
    bins.add(nats);
    all.add(nats);
    documents.push_back({{"file", chosen.files[i]}, {"nats_by_position", bins.as_json()}});
  }
  if (chosen.as_json)
    return print_json({{"nats_per_token", all.mean()},
                       {"bits_per_byte", all.sum() / std::log(2.0) / static_cast<double>(bytes)},
                       {"nats_by_position", all.as_json()},
                       {"documents", documents}});
  all.print();
  std::printf("%zu texts, %lld bytes: %.4f nats a token, %.4f bits a byte\n", texts.size(),
              static_cast<long long>(bytes), all.mean(), all.sum() / std::log(2.0) / static_cast<double>(bytes));
}

void run_passkey(const options& chosen) {
  const loaded_model loaded(chosen.model);
  const language_model& model = loaded.model();
  const auto words = make_tokenizer(chosen.model, model);
  std::mt19937_64 generator(chosen.seed);
  progress shown(chosen.trials * chosen.length, !chosen.as_json);
  const la::index_t window = completed(chosen.attention, model.shape().training_length).window;
  share_of found, found_outside;
  for (std::int64_t i = 0; i < chosen.trials; ++i) {
    const passkey_prompt prompt = make_passkey_prompt(model, *words, chosen.length, generator);
    const bool right = finds_passkey(model, *words, chosen.attention, prompt);
    found.add(right);
    if (prompt.tokens_after >= window) found_outside.add(right);
    shown.advance(chosen.length);
  }
  if (chosen.as_json)
    return print_json(
        {{"length", chosen.length}, {"found", found.as_json()}, {"found_outside_window", found_outside.as_json()}});
  std::printf("%lld tokens: the passkey was found in %s", static_cast<long long>(chosen.length), found.text().c_str());
  std::printf("; where it had left the window, in %s\n", found_outside.text().c_str());
}

template <class Value>
CLI::Option* add_choice(CLI::App& command, const char* name, Value& value, const std::map<std::string, Value>& choices,
                        const char* meaning) {
  std::vector<std::string> names;
  for (const auto& choice : choices) names.push_back(choice.first);
  return command
      .add_option_function<std::string>(
          name, [&](const std::string& given) { value = choices.at(given); }, meaning)
      ->check(CLI::IsMember(names))
      ->type_name("");
}

void add_common_options(CLI::App& command, options& chosen) {
  attention_settings& attention = chosen.attention;
  command.add_option("model", chosen.model, "folder with config.json and safetensors")->required();
  add_choice(command, "--attention", attention.attention, policies, "which keys a token sees, and at which distances")
      ->default_str("lm-infinite");
  command
      .add_option("--sinks", attention.sinks, "first tokens that lm-infinite, no-clamp and streaming-llm always see")
      ->capture_default_str();
  command
      .add_option("--window", attention.window,
                  "newest tokens that all but full and rerope see; 0: as many as in training")
      ->capture_default_str();
  command
      .add_option("--distance-limit", attention.distance_limit,
                  "larger distances count as this for lm-infinite and rerope; 0: the window")
      ->capture_default_str();
  add_choice(command, "--kv", attention.kv, storages, "how keys and values are kept")->default_str("f32");
  command.add_option("--threads", attention.threads, "workers")->capture_default_str();
  command.add_flag("--json", chosen.as_json, "one JSON object, for machines");
}

/// Of commands that ask something.
void add_question_options(CLI::App& command, options& chosen) {
  command
      .add_option(
          "--top-k", chosen.attention.top_k,
          "best tokens between the sinks and the window that the end of a prompt, and what follows, see as well")
      ->capture_default_str();
  command.add_option("--seed", chosen.seed, "of whatever is random")->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) try {
  options chosen;
  chosen.attention.threads = omp_get_max_threads();
  CLI::App app("Language models at any length, on lambda_attention");
  app.require_subcommand(1);

  CLI::App& generate = *app.add_subcommand("generate", "go on with a text");
  add_common_options(generate, chosen);
  add_question_options(generate, chosen);
  auto* prompt = generate.add_option("--prompt", chosen.prompt, "the text");
  auto* prompt_file =
      generate.add_option("--prompt-file", chosen.prompt_file, "a file with the text")->excludes(prompt);
  generate.add_option("--ids", chosen.ids, "tokens in place of text, as numbers: \"1 15043\"")
      ->excludes(prompt)
      ->excludes(prompt_file);
  generate.add_option("--tokens", chosen.tokens, "how many to generate")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30))
      ->capture_default_str();
  generate.add_option("--temperature", chosen.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();

  CLI::App& perplexity = *app.add_subcommand("perplexity", "how well texts are predicted, by position");
  add_common_options(perplexity, chosen);
  perplexity.add_option("files", chosen.files, "texts")->required();

  CLI::App& passkey = *app.add_subcommand("passkey", "hide five digits in a long text, and ask for them");
  add_common_options(passkey, chosen);
  add_question_options(passkey, chosen);
  passkey.add_option("--length", chosen.length, "tokens of a prompt")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30))
      ->capture_default_str();
  passkey.add_option("--trials", chosen.trials, "prompts")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30))
      ->capture_default_str();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    return app.exit(problem) == 0 ? 0 : 1;
  }
  omp_set_num_threads(chosen.attention.threads > 0 ? chosen.attention.threads : 1);
  if (generate) run_generate(chosen);
  if (perplexity) run_perplexity(chosen);
  if (passkey) run_passkey(chosen);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) fail("the standard output cannot be written");
  return 0;
} catch (const std::bad_alloc&) {
  std::fputs("llama: not enough memory for the model and for as many tokens as asked for\n", stderr);
  return 1;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "llama: %s\n", problem.what());
  return 1;
}
