// length_generalization: what happens to models beyond the length that they were trained at, with each kind of
// attention. Prints tables in Markdown, and draws charts.
#include "experiments/chart.hpp"
#include "experiments/decode_cost.hpp"
#include "experiments/endless_stream.hpp"
#include "experiments/nll_by_position.hpp"
#include "experiments/passkey_by_length.hpp"
#include "load_model.hpp"
#include "text_files.hpp"

#include <CLI/CLI.hpp>

#include <omp.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using namespace llama;
using namespace llama::experiments;

constexpr std::size_t document_bytes = 16384;
constexpr std::uint64_t seed = 20240617;

struct options {
  std::string models, sources, program, output = ".";
  std::string only;
  std::vector<std::string> names = {"llama", "llama-sink", "mpt"};
  std::int64_t documents = 16, trials = 100, tokens = 1'000'000;
  int threads = omp_get_max_threads();

  bool runs(const char* experiment) const { return only.empty() || only == experiment; }
  std::string model(const std::string& name) const { return models + "/" + name; }
};

/// Tables go to the standard output and to a file beside the charts.
class report {
 public:
  explicit report(const std::string& path) : file_(std::fopen(path.c_str(), "w")) {
    if (file_ == nullptr) fail("%s: cannot be written", path.c_str());
  }
  ~report() { std::fclose(file_); }
  report(const report&) = delete;
  report& operator=(const report&) = delete;

  __attribute__((format(printf, 2, 3))) void print(const char* format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (std::FILE* out : {stdout, file_}) {
      std::fputs(text, out);
      std::fflush(out);
    }
  }

 private:
  std::FILE* file_;
};

/// Models may lie in folders: seed-1/llama.
std::string file_name(std::string model) {
  std::replace(model.begin(), model.end(), '/', '_');
  return model;
}

std::string length_name(std::int64_t tokens) {
  return tokens < 1024 ? std::to_string(tokens) : std::to_string(tokens / 1024) + "k";
}

// ---- 1, 5: how well text is predicted, by position

/// The places of position_bins that are whole: a quarter of the training length, half of it, all of it, twice, ...
std::vector<double> ends_of_ranges(std::size_t ranges, std::int64_t training_length) {
  std::vector<double> ends;
  for (std::size_t i = 0; i < ranges; ++i) ends.push_back(static_cast<double>((training_length / 4) << i));
  return ends;
}

std::string columns(std::size_t count) {
  std::string rule;
  for (std::size_t i = 0; i < count; ++i) rule += "---|";
  return rule;
}

void print_nll_table(report& out, const std::vector<nll_table>& tables, const std::vector<double>& ends) {
  const nll_table& ours =
      *std::find_if(tables.begin(), tables.end(), [](auto& t) { return t.reader == "LM-Infinite"; });
  out.print("| nats a byte, positions up to |");
  for (std::size_t range = 2; range < ends.size(); ++range) out.print(" %.0f |", ends[range]);
  out.print(" less LM-Infinite beyond %.0f |\n|---|%s\n", ends[2], columns(ends.size() - 1).c_str());
  for (const nll_table& table : tables) {
    out.print("| %s |", table.reader.c_str());
    for (std::size_t range = 2; range < ends.size(); ++range)
      out.print(" %.3f ± %.3f |", table.at(range).mean, table.at(range).standard_error);
    const std::vector<double> differences = table.differences_from(ours, 3);
    const mean_and_error difference = statistics_of(differences);
    const auto worse = std::count_if(differences.begin(), differences.end(), [](double d) { return d > 0; });
    if (&table == &ours)
      out.print(" |\n");
    else
      out.print(" %+.3f ± %.3f, worse in %d of %zu |\n", difference.mean, difference.standard_error,
                static_cast<int>(worse), differences.size());
  }
}

void draw_nll_chart(const std::vector<nll_table>& tables, const std::vector<double>& ends, const std::string& subtitle,
                    const std::string& picture) {
  chart drawn;
  drawn.title = "Text beyond the training length";
  drawn.subtitle = subtitle;
  drawn.x_label = "position in the text, in bytes";
  drawn.y_label = "nats a byte";
  drawn.y_range = "[0.8:*]";
  drawn.training_length = ends[2];
  for (const double end : ends) {
    drawn.x.push_back(end);
    drawn.x_names.push_back(length_name(static_cast<std::int64_t>(end)));
  }
  for (const nll_table& table : tables) {
    line curve{table.reader, {}, {}};
    for (std::size_t range = 0; range < ends.size(); ++range) {
      curve.values.push_back(table.at(range).mean);
      curve.errors.push_back(table.at(range).standard_error);
    }
    drawn.lines.push_back(curve);
  }
  draw(drawn, picture);
}

void read_texts(const options& chosen, report& out, const std::string& name, const language_model& model,
                const char* set, const std::vector<std::string>& documents, const std::string& picture) {
  auto readers = all_readers();
  const bool rotates = std::holds_alternative<la::rope>(model.position());
  if (!rotates)  // a bias has no angles that were never seen, and nothing to tell apart in how far away sinks are
    readers = {readers[0], readers[1], readers[5], readers[6]};
  const stopwatch watch;
  const auto tables = nll_by_position(model, readers, documents, true);
  const auto ends = ends_of_ranges(tables[0].ranges(), model.shape().training_length);
  out.print("\n**%s, %s**, %zu documents of %zu bytes (%.0f s)\n\n", name.c_str(), set, documents.size(),
            document_bytes, watch.seconds());
  print_nll_table(out, tables, ends);
  draw_nll_chart(tables, ends, name + ", " + set + ", " + std::to_string(documents.size()) + " documents",
                 chosen.output + "/" + picture + ".svg");
}

void nll_experiment(const options& chosen, report& out) {
  const auto most = static_cast<std::size_t>(chosen.documents);
  const auto held_out = documents_below(chosen.models + "/held_out", document_bytes, most);
  const auto sources = sources_below(chosen.sources, document_bytes, (most + 3) / 4);
  for (const std::string& name : chosen.names) {
    const loaded_model loaded(chosen.model(name));
    read_texts(chosen, out, name, loaded.model(), "held-out text", held_out, "nll_" + file_name(name));
    if (name == chosen.names[0])
      read_texts(chosen, out, name, loaded.model(), "this project's sources, one piece after another", sources,
                 "nll_" + file_name(name) + "_sources");
  }
}

// ---- 2: passkeys

void passkey_experiment(const options& chosen, report& out) {
  const std::vector<std::int64_t> lengths = {256, 512, 1024, 2048, 4096};
  for (const std::string& name : chosen.names) {
    const loaded_model loaded(chosen.model(name));
    if (!std::holds_alternative<la::rope>(loaded.model().position()))
      continue;  // it forgets by distance: that is ALiBi
    const auto readers = all_passkey_readers();
    std::int64_t tokens = 0;
    for (const std::int64_t length : lengths)
      tokens += length * chosen.trials * static_cast<std::int64_t>(readers.size());
    progress shown(tokens, true);
    const stopwatch watch;
    chart drawn;
    drawn.title = "A passkey of five digits, found";
    drawn.subtitle = name + ", " + std::to_string(chosen.trials) + " prompts a point";
    drawn.x_label = "length of the prompt, in bytes";
    drawn.y_label = "per cent";
    drawn.y_range = "[-3:103]";
    drawn.training_length = static_cast<double>(loaded.model().shape().training_length);
    for (const std::int64_t length : lengths) {
      drawn.x.push_back(static_cast<double>(length));
      drawn.x_names.push_back(length_name(length));
    }
    std::string rows;
    for (const passkey_reader& how : readers) {
      line curve{how.name, {}, {}};
      rows += "| " + how.name + " |";
      for (const std::int64_t length : lengths) {
        const passkey_result result = passkey_at(loaded.model(), how, length, chosen.trials, seed, shown);
        rows += " " + result.found.percent() + "; " + result.found_outside_window.percent() + " |";
        curve.values.push_back(100 * result.found.share());
      }
      rows += "\n";
      drawn.lines.push_back(curve);
    }
    out.print(
        "\n**%s, passkeys**: %% of %lld prompts (95 %% interval); of those whose key the window has left behind "
        "(%.0f s)\n\n| length |",
        name.c_str(), static_cast<long long>(chosen.trials), watch.seconds());
    for (const std::int64_t length : lengths) out.print(" %lld |", static_cast<long long>(length));
    out.print("\n|---|%s\n%s", columns(lengths.size()).c_str(), rows.c_str());
    draw(drawn, chosen.output + "/passkey_" + file_name(name) + ".svg");
  }
}

// ---- 3: time and memory of a token

void decode_experiment(const options& chosen, report& out) {
  const std::string text = documents_below(chosen.models + "/held_out", document_bytes, 1)[0];
  const std::string model = chosen.model(chosen.names[0]);
  constexpr int repetitions = 5;
  const char* const policies[] = {"full", "lm-infinite"};
  chart time, memory;
  time.title = "Time of one more token";
  time.y_label = "milliseconds";
  time.y_logarithmic = true;
  memory.title = "Memory of the whole process";
  memory.y_label = "megabytes resident, at most";
  memory.y_range = "[0:*]";
  for (chart* drawn : {&time, &memory}) {
    drawn->subtitle = chosen.names[0] + ", one thread, float";
    drawn->x_label = "tokens before it";
    drawn->lines = {{"full attention", {}, {}}, {"LM-Infinite", {}, {}}};
  }
  out.print(
      "\n**%s, one more token**, one thread, keys and values in float, medians of %d runs\n\n"
      "| tokens before it | full: ms | LM-Infinite: ms | times | full: caches MB, resident MB | LM-Infinite: caches "
      "MB, resident MB | times |\n|---|---|---|---|---|---|---|\n",
      chosen.names[0].c_str(), repetitions);
  for (std::int64_t length = 1024; length <= 32768; length *= 2) {
    std::vector<decode_cost> runs[2];
    for (int run = 0; run < repetitions; ++run)
      for (int which = 0; which < 2; ++which)
        runs[which].push_back(decode_cost_at(chosen.program, model, policies[which], length, 129, text));
    const decode_cost full = median_of(runs[0]), ours = median_of(runs[1]);
    out.print("| %lld | %.2f | %.2f | %.1f | %.1f, %.1f | %.1f, %.1f | %.1f |\n", static_cast<long long>(length),
              full.seconds_per_token * 1e3, ours.seconds_per_token * 1e3,
              full.seconds_per_token / ours.seconds_per_token, full.cache_bytes / 1e6, full.peak_memory_bytes / 1e6,
              ours.cache_bytes / 1e6, ours.peak_memory_bytes / 1e6, full.peak_memory_bytes / ours.peak_memory_bytes);
    for (chart* drawn : {&time, &memory}) {
      drawn->x.push_back(static_cast<double>(length));
      drawn->x_names.push_back(length_name(length));
    }
    for (std::size_t which = 0; which < 2; ++which) {
      const decode_cost& cost = which == 0 ? full : ours;
      time.lines[which].values.push_back(cost.seconds_per_token * 1e3);
      memory.lines[which].values.push_back(cost.peak_memory_bytes / 1e6);
    }
  }
  draw(time, chosen.output + "/decode.svg");
  draw(memory, chosen.output + "/memory.svg");
}

// ---- 4: streams that do not end

std::vector<token> held_out_text(const options& chosen) {
  std::string text;
  for (const std::string& document : documents_below(chosen.models + "/held_out", document_bytes, 1000))
    text += document;
  return byte_tokenizer().encode(text);
}

void print_stream(report& out, const stream_result& result, bool with_nats) {
  out.print(with_nats ? "| tokens | µs a token | nats a byte | caches MB | resident MB |\n|---|---|---|---|---|\n"
                      : "| tokens | µs a token | cache MB | resident MB |\n|---|---|---|---|\n");
  for (const stream_sample& sample : result.samples) {
    out.print("| %lld | %.2f |", static_cast<long long>(sample.tokens), sample.seconds_per_token * 1e6);
    if (with_nats) out.print(" %.3f |", sample.nats_per_token);
    out.print(" %.2f | %.1f |\n", sample.cache_bytes / 1e6, sample.resident_bytes / 1e6);
  }
  out.print("\nAttention at these positions, against the reference: NMSE at most %.1e.\n", result.largest_error);
}

void stream_experiment(const options& chosen, report& out) {
  const loaded_model loaded(chosen.model(chosen.names[0]));
  out.print("\n**%s, a stream of %lld tokens**\n\n", chosen.names[0].c_str(), static_cast<long long>(chosen.tokens));
  print_stream(out, read_endless_stream(loaded.model(), {}, held_out_text(chosen), chosen.tokens, true), true);
}

void layer_experiment(const options& chosen, report& out) {
  const loaded_model loaded(chosen.model(chosen.names[0]));
  out.print("\n**The attention of %s's first layer, %lld tokens**\n\n", chosen.names[0].c_str(),
            static_cast<long long>(chosen.tokens));
  print_stream(out, read_endless_layer(loaded.model(), {}, held_out_text(chosen), chosen.tokens, true), false);
}

options parsed(CLI::App& app, int argc, char** argv) {
  options chosen;
  app.add_option("--models", chosen.models, "folder of the models and of held_out/")->required();
  app.add_option("--sources", chosen.sources, "folder of source texts")->required();
  app.add_option("--program", chosen.program, "the program llama")->required();
  app.add_option("--output", chosen.output, "folder for results.md and the charts")->capture_default_str();
  app.add_option("--names", chosen.names, "models")->capture_default_str();
  app.add_option("--only", chosen.only, "one of the experiments")
      ->check(CLI::IsMember({"nll", "passkey", "decode", "stream", "layer"}));
  const CLI::Range at_least_one(std::int64_t{1}, std::int64_t{1} << 40);
  app.add_option("--documents", chosen.documents, "texts")->check(at_least_one)->capture_default_str();
  app.add_option("--trials", chosen.trials, "passkeys a point")->check(at_least_one)->capture_default_str();
  app.add_option("--tokens", chosen.tokens, "of the endless streams")
      ->check(CLI::Range(std::int64_t{5120}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--threads", chosen.threads, "workers")->check(CLI::Range(1, 1024))->capture_default_str();
  app.parse(argc, argv);
  return chosen;
}

/// What would make an experiment fail in the end, or mean nothing, is found out before it begins.
void check_tools_and_models(const options& chosen) {
  if (chosen.only != "stream" && chosen.only != "layer" && std::system("gnuplot --version > /dev/null 2>&1") != 0)
    fail("gnuplot is missing: it draws the charts (Debian: gnuplot-nox)");
  for (const std::string& name : chosen.names) {
    const loaded_model loaded(chosen.model(name));
    const model_shape& shape = loaded.model().shape();
    const auto longest = static_cast<std::int64_t>(document_bytes) / 4;
    if (shape.vocabulary != 257 || shape.bos != 256 || shape.training_length < 8 || shape.training_length > longest)
      fail("%s: expected a model of bytes and a BOS, 256, trained on 8 to %lld of them", name.c_str(),
           static_cast<long long>(longest));
  }
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("What models do beyond the length that they were trained at");
  options chosen;
  try {
    chosen = parsed(app, argc, argv);
  } catch (const CLI::ParseError& problem) {
    return app.exit(problem) == 0 ? 0 : 1;
  }
  omp_set_num_threads(chosen.threads);
  check_tools_and_models(chosen);
  std::filesystem::create_directories(chosen.output);
  report out(chosen.output + (chosen.only.empty() ? "/results.md" : "/results_" + chosen.only + ".md"));
  if (chosen.runs("nll")) nll_experiment(chosen, out);
  if (chosen.runs("passkey")) passkey_experiment(chosen, out);
  if (chosen.runs("decode")) decode_experiment(chosen, out);
  if (chosen.runs("stream")) stream_experiment(chosen, out);
  if (chosen.runs("layer")) layer_experiment(chosen, out);
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "length_generalization: %s\n", problem.what());
  return 1;
}
