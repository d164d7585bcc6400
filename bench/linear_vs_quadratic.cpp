// O(n) against O(n^2): time and memory of Λ-attention beside those of full attention, for whole sequences and for decoding,
// and a real text read as a stream. Prints one table and draws one chart.
//
// Every measurement runs in a process of its own, which this program starts as `linear_vs_quadratic measure WHAT ...`.
#include "demo/chart.hpp"
#include "demo/child.hpp"
#include "demo/decode.hpp"
#include "demo/prefill.hpp"
#include "demo/results.hpp"
#include "demo/settings.hpp"
#include "demo/text.hpp"
#include "demo/text_files.hpp"
#include "support/memory.hpp"
#include "support/timing.hpp"

#include <getopt.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using demo::index_t;

constexpr const char* usage =
    "usage: linear_vs_quadratic [--output FILE.svg] [--naive PROGRAM] [--input FILE]\n"
    "\n"
    "Compares Λ-attention with full attention, prints one table and draws one chart. Takes two to three minutes.\n"
    "\n"
    "  --output FILE    the chart; its gnuplot script is written beside it (linear_vs_quadratic.svg)\n"
    "  --naive PROGRAM  the naive baseline (naive_attention, beside this program)\n"
    "  --input FILE     the text that is read as a stream, its first 262,144 bytes (README.md and include/**/*.hpp)\n"
    "  --help           this text\n";

struct settings {
  std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  std::string naive = std::filesystem::path(program).replace_filename("naive_attention").string();
  std::string output = "linear_vs_quadratic.svg";
  std::string input;
};

void progress(const std::string& what) {
  static const double start = bench::now();
  std::fprintf(stderr, "[%4.0f s] %s\n", bench::now() - start, what.c_str());
}

// ---- measuring

/// A file without a name, through which processes pass more than numbers.
class shared_file {
 public:
  shared_file() : file_(std::tmpfile(), std::fclose) {
    if (!file_) throw std::runtime_error(std::string("cannot make a temporary file: ") + std::strerror(errno));
  }
  std::FILE* get() const { return file_.get(); }
  std::string descriptor() const { return std::to_string(fileno(file_.get())); }

 private:
  demo::file_handle file_;
};

/// What both files hold, number by number; little of it at a time, for a child begins with the size of its parent.
bench::deviation compare_rows(const shared_file& expected, const shared_file& got) {
  bench::deviation result;
  std::rewind(expected.get());
  std::rewind(got.get());
  float a[256], b[256];
  for (std::size_t left = demo::window * demo::num_heads * demo::head_dim; left > 0; left -= 256) {
    if (std::fread(a, sizeof *a, 256, expected.get()) != 256 || std::fread(b, sizeof *b, 256, got.get()) != 256)
      throw std::runtime_error("a measurement did not pass its rows on");
    for (int i = 0; i < 256; ++i) result.add(a[i], b[i]);
  }
  return result;
}

/// Whether a call that is expected to take so long is made.
bool affordable(double expected_seconds, index_t tokens, const char* name) {
  if (expected_seconds <= 60) return true;
  progress(demo::format("%s, %d tokens: left out, would take about %.0f s", name, static_cast<int>(tokens),
                        expected_seconds));
  return false;
}

bool fits_in_memory(index_t tokens) {
  const double inputs = 4.0 * static_cast<double>(tokens * 4 * demo::num_heads * demo::head_dim);
  const bool fits = 4.0 * static_cast<double>(tokens) * static_cast<double>(tokens) + inputs < bench::available_bytes();
  if (!fits)
    progress(demo::format("naive, %d tokens: left out, its matrix does not fit in memory", static_cast<int>(tokens)));
  return fits;
}

demo::method measure_method(const char* name, index_t tokens, std::vector<std::string> command,
                            const shared_file& rows) {
  command.push_back(std::to_string(tokens));
  command.push_back(rows.descriptor());
  const demo::findings found = demo::run_child(command);
  progress(
      demo::format("%s, %d tokens: %s", name, static_cast<int>(tokens), demo::time_text(found["seconds"]).c_str()));
  return {found["seconds"], found["extra_bytes"]};
}

/// All three methods at growing lengths, and how their first rows agree. Twice the length takes a quadratic method four
/// times as long.
void measure_sequences(const settings& given, demo::results& results) {
  double naive_seconds = 0, full_seconds = 0;
  for (index_t n = demo::smallest_tokens; n <= demo::largest_tokens; n *= 2) {
    const shared_file naive_rows, full_rows, lambda_rows;
    demo::length_results at;
    at.tokens = n;
    at.lambda = measure_method("Λ", n, {given.program, "measure", "lambda"}, lambda_rows);
    if (affordable(full_seconds, n, "full")) {
      at.full = measure_method("full", n, {given.program, "measure", "full"}, full_rows);
      results.agreement.full.add(compare_rows(full_rows, lambda_rows));
    }
    if (n <= demo::largest_naive_tokens && affordable(naive_seconds, n, "naive") && fits_in_memory(n)) {
      at.naive = measure_method("naive", n, {given.naive}, naive_rows);
      results.agreement.naive.add(compare_rows(naive_rows, lambda_rows));
    }
    full_seconds = 4 * (std::isnan(at.full.seconds) ? full_seconds : at.full.seconds);
    naive_seconds = 4 * (std::isnan(at.naive.seconds) ? naive_seconds : at.naive.seconds);
    results.lengths.push_back(at);
  }
}

void measure_lambda_times(const settings& given, demo::results& results) {
  progress("Λ at every length in turn, for its times");
  const demo::findings found = demo::run_child({given.program, "measure", "lambda_times"});
  for (demo::length_results& at : results.lengths) at.lambda.seconds = found["seconds/" + std::to_string(at.tokens)];
}

void measure_decode(const settings& given, demo::results& results) {
  progress("decoding at every stream length in turn");
  const demo::findings found = demo::run_child({given.program, "measure", "decode"});
  for (index_t n = results.lengths.back().tokens * 2; n <= demo::largest_stream; n *= 2) {
    results.lengths.emplace_back();
    results.lengths.back().tokens = n;
  }
  for (demo::length_results& at : results.lengths) {
    const std::string length = "/" + std::to_string(at.tokens);
    at.unbounded_seconds = found["seconds/unbounded" + length];
    at.kv_cache_seconds = found["seconds/kv_cache" + length];
    at.unbounded_bytes = found["bytes/unbounded" + length];
    at.kv_cache_bytes = found["bytes/kv_cache" + length];
  }
}

demo::findings measure_text(const settings& given, const std::string& text) {
  progress(demo::format("a text of %zu bytes, token by token and in chunks", text.size()));
  const shared_file file;
  if (std::fwrite(text.data(), 1, text.size(), file.get()) != text.size())
    throw std::runtime_error("cannot pass the text on");
  std::rewind(file.get());
  return demo::run_child({given.program, "measure", "text", file.descriptor()});
}

// ---- the processes that measure

std::string read_descriptor(int descriptor) {
  std::string text(demo::most_bytes, '\0');
  const demo::file_handle file(fdopen(descriptor, "rb"), std::fclose);
  if (!file) throw std::runtime_error("no text to read");
  text.resize(std::fread(text.data(), 1, text.size(), file.get()));
  return text;
}

void measure(const std::vector<std::string>& arguments) {
  const auto number = [&](std::size_t i) { return std::stoi(arguments.at(i)); };
  const std::string what = arguments.empty() ? "" : arguments[0];
  if (what == "lambda") return demo::measure_lambda(number(1), number(2));
  if (what == "full") return demo::measure_full(number(1), number(2));
  if (what == "lambda_times") return demo::measure_lambda_times();
  if (what == "decode") return demo::measure_decode();
  if (what == "text") return demo::measure_text(read_descriptor(number(1)));
  throw std::runtime_error("measure what?");
}

// ---- the program that compares

settings parse(int argc, char** argv) {
  settings given;
  const option options[] = {{"output", required_argument, nullptr, 'o'},
                            {"naive", required_argument, nullptr, 'n'},
                            {"input", required_argument, nullptr, 'i'},
                            {"help", no_argument, nullptr, 'h'},
                            {nullptr, 0, nullptr, 0}};
  for (int found = 0; (found = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    switch (found) {
      case 'o':
        given.output = optarg;
        break;
      case 'n':
        given.naive = optarg;
        break;
      case 'i':
        given.input = optarg;
        break;
      case 'h':
        std::fputs(usage, stdout);
        std::exit(0);
      default:
        std::exit(1);  // getopt has said why
    }
  }
  if (optind < argc) throw std::runtime_error(std::string("unexpected argument ") + argv[optind] + "; see --help");
  return given;
}

/// What would make the demo fail in the end is found out before it begins.
void check_settings(const settings& given) {
  if (access(given.naive.c_str(), X_OK) != 0) throw std::runtime_error("cannot run the naive baseline " + given.naive);
  if (std::system("gnuplot --version > /dev/null 2>&1") != 0)
    throw std::runtime_error("gnuplot is missing: it draws the chart (Debian: gnuplot-nox)");
  const demo::file_handle picture(std::fopen(given.output.c_str(), "a"), std::fclose);
  if (!picture) throw std::runtime_error("cannot write " + given.output + ": " + std::strerror(errno));
}

void print_text_heading(const settings& given, const demo::findings& text) {
  std::printf(
      "\nA real text, %s%s: %d bytes, each a row of a seeded normal table (seed %u),\n"
      "%d heads over %d, head_dim %d, streamed through kv_cache<f32, rope>:\n\n",
      given.input.empty() ? "README.md and include/**/*.hpp" : given.input.c_str(),
      text["tokens"] == demo::most_bytes ? ", its beginning" : "", static_cast<int>(text["tokens"]),
      demo::text_model::seed, int{demo::text_model::num_heads}, int{demo::text_model::num_kv_heads},
      int{demo::text_model::head_dim});
}

int compare(const settings& given) {
  const std::string text = demo::read_texts(given.input.empty() ? demo::own_files() : std::vector{given.input});
  check_settings(given);
  demo::results results;
  measure_sequences(given, results);
  measure_lambda_times(given, results);
  measure_decode(given, results);
  results.text = measure_text(given, text);
  demo::draw_chart(given.output, results.lengths);
  progress("done");

  demo::print_heading();
  demo::print_table(results.lengths);
  demo::print_notes(results.lengths);
  const bool agrees = demo::print_claims(results);
  print_text_heading(given, results.text);
  const bool single = demo::print_text_claims(results.text, "single", "token by token");
  const bool chunks = demo::print_text_claims(results.text, "chunks", "chunks of 1 to 700");
  std::printf("\nchart: %s\n", given.output.c_str());
  if (agrees && single && chunks) return 0;
  std::fprintf(stderr, "linear_vs_quadratic: an output is outside its bound, or memory grew: see NO above\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.empty() || arguments[0] != "measure") return compare(parse(argc, argv));
    measure({arguments.begin() + 1, arguments.end()});
  } catch (const std::exception& error) {
    demo::fail(error.what());
  }
}
