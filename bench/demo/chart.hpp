// The chart: a gnuplot script with its data in it, written beside the picture.
#pragma once

#include "child.hpp"
#include "results.hpp"
#include "settings.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

inline constexpr const char* chart_style = R"(
set terminal svg size 1200,560 dynamic enhanced font 'sans-serif,15' background '#ffffff'
set encoding utf8
set border 3 linecolor '#555555'
set tics nomirror textcolor '#333333'
set grid xtics ytics linecolor '#dddddd' linewidth 1 dashtype 1
set logscale xy
set mxtics 1
set mytics 1
set key top left reverse Left samplen 2.5 spacing 1.25 width -4
set style line 1 linecolor '#c1442e' linewidth 2.5 pointtype 5 pointsize 0.9
set style line 2 linecolor '#3f6fb0' linewidth 2.5 pointtype 9 pointsize 1.1
set style line 3 linecolor '#1b8a5a' linewidth 3.5 pointtype 7 pointsize 1.0
set datafile missing 'nan'
set ytics ('1 µs' 1e-6, '10 µs' 1e-5, '100 µs' 1e-4, '1 ms' 1e-3, '10 ms' 1e-2, '100 ms' 0.1, '1 s' 1, '10 s' 10, '100 s' 100)
set xtics ('1k' 1024, '2k' 2048, '4k' 4096, '8k' 8192, '16k' 16384, '32k' 32768, '64k' 65536)
)";

inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

inline std::string chart_data(const std::vector<length_results>& lengths) {
  std::string data = "$data << end_of_data\n# tokens, seconds: naive full lambda unbounded kv_cache\n";
  for (const length_results& at : lengths)
    data += format("%d %.4g %.4g %.4g %.4g %.4g\n", static_cast<int>(at.tokens), at.naive.seconds, at.full.seconds,
                   at.lambda.seconds, at.unbounded_seconds, at.kv_cache_seconds);
  return data + "end_of_data\n";
}

/// The least and the largest of some times, with room around the lines for what is written there.
inline std::string time_range(const std::vector<double>& seconds) {
  double least = HUGE_VAL, most = 0;
  for (const double time : seconds) {
    if (std::isnan(time)) continue;
    least = std::min(least, time);
    most = std::max(most, time);
  }
  return format("set yrange [%g:%g]\n", least / 3, most * 5);
}

/// A dotted line between two times at one length, and their quotient beside it.
inline std::string gap_mark(index_t tokens, double slow, double fast) {
  if (std::isnan(slow)) return "";
  const int n = static_cast<int>(tokens);
  return format("set arrow 1 from %d,%g to %d,%g nohead linecolor '#777777' linewidth 1.5 dashtype '.'\n", n, fast, n,
                slow) +
         format("set label 1 '{/:Bold %.0f×}' at %d,%g right offset -0.6,0 textcolor '#444444'\n", slow / fast, n,
                std::sqrt(slow * fast));
}

inline std::string sequence_panel(const std::vector<length_results>& lengths) {
  std::vector<double> seconds;
  std::string mark;
  for (const length_results& at : lengths) {
    seconds.insert(seconds.end(), {at.naive.seconds, at.full.seconds, at.lambda.seconds});
    if (!std::isnan(at.full.seconds)) mark = gap_mark(at.tokens, at.full.seconds, at.lambda.seconds);
  }
  return time_range(seconds) + mark + R"(
set title '{/:Bold A whole sequence}' offset 0,-0.4
set xlabel 'tokens in the sequence, n'
set ylabel 'time' offset 1.5,0
set xrange [900:37000]
plot $data using 1:2 with linespoints linestyle 1 title 'naive, n × n with Eigen: O(n^2)', \
     $data using 1:3 with linespoints linestyle 2 title 'full causal, this library: O(n^2)', \
     $data using 1:4 with linespoints linestyle 3 title 'Λ-attention: O(n)'
)";
}

inline std::string stream_panel(const std::vector<length_results>& lengths) {
  std::vector<double> seconds;
  for (const length_results& at : lengths) seconds.insert(seconds.end(), {at.unbounded_seconds, at.kv_cache_seconds});
  const length_results& last = lengths.back();
  return time_range(seconds) + gap_mark(last.tokens, last.unbounded_seconds, last.kv_cache_seconds) + R"(
set title '{/:Bold One more token of a stream}' offset 0,-0.4
set xlabel 'tokens in the stream so far'
set ylabel 'time per token' offset 1.5,0
set xrange [900:74000]
plot $data using 1:5 with linespoints linestyle 2 title 'unbounded cache: O(n)', \
     $data using 1:6 with linespoints linestyle 3 title 'kv\_cache: O(1)'
)";
}

/// `text` between double quotes, its underscores as they are: gnuplot takes them for the sign of a subscript.
inline std::string plain(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '_' ? std::string("\\\\_") : std::string(1, c);
  return escaped;
}

inline std::string chart_script(const std::string& picture, const std::vector<length_results>& lengths) {
  const std::string setting =
      plain(format("%d heads over %d key/value heads, head_dim %d, %d sinks, window %d, float, one thread, %s",
                   int{num_heads}, int{num_kv_heads}, int{head_dim}, int{num_sinks}, int{window},
                   lambda_attention::name_of(lambda_attention::isa())));
  return chart_data(lengths) + chart_style + "set output " + quoted(picture) +
         "\nset multiplot layout 1,2 margins 0.09,0.98,0.13,0.8 spacing 0.1,0 title "
         "\"{/:Bold=21 Λ-attention: linear time, constant cost per token}\\n{/=14 " +
         setting + "}\"\n" + sequence_panel(lengths) + "unset arrow\nunset label\n" + stream_panel(lengths) +
         "unset multiplot\n";
}

inline void draw_chart(const std::string& picture, const std::vector<length_results>& lengths) {
  const std::string script = std::filesystem::path(picture).replace_extension(".gp").string();
  std::ofstream(script) << chart_script(picture, lengths);
  run_child({"gnuplot", script});
  if (!std::filesystem::exists(picture)) throw std::runtime_error("gnuplot did not draw " + picture);
}

}  // namespace demo
