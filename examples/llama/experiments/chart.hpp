// Line charts, drawn by gnuplot from a script with the data in it that is left beside the picture.
#pragma once

#include "../error.hpp"
#include "shell.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace llama::experiments {

struct line {
  std::string title;
  std::vector<double> values;  ///< one for each place on the x-axis, as far as they go
  std::vector<double> errors;  ///< half the height of a bar, or none
};

struct chart {
  std::string title, subtitle, x_label, y_label;
  std::vector<double> x;
  std::vector<std::string> x_names;
  std::vector<line> lines;
  double training_length = 0;  ///< marked on the x-axis, unless 0
  bool y_logarithmic = false;
  std::string y_range = "[*:*]";
};

namespace detail {
constexpr const char* chart_style = R"(
set terminal svg size 900,560 dynamic enhanced font 'sans-serif,15' background '#ffffff'
set encoding utf8
set border 3 linecolor '#555555'
set tics nomirror textcolor '#333333'
set grid xtics ytics linecolor '#dddddd' linewidth 1 dashtype 1
set logscale x 2
set mxtics 1
set key bmargin center horizontal Left reverse samplen 2 spacing 1.3 maxcols 4
set style line 1 linecolor '#c1442e' linewidth 2.5 pointtype 5 pointsize 0.8
set style line 2 linecolor '#3f6fb0' linewidth 2.5 pointtype 9 pointsize 0.9
set style line 3 linecolor '#b07d2b' linewidth 2.5 pointtype 13 pointsize 0.9
set style line 4 linecolor '#7b4fa3' linewidth 2.5 pointtype 11 pointsize 0.9
set style line 5 linecolor '#2b9aa8' linewidth 2.5 pointtype 4 pointsize 0.9
set style line 6 linecolor '#1b8a5a' linewidth 3.5 pointtype 7 pointsize 0.9
set style line 7 linecolor '#777777' linewidth 2 dashtype 2 pointtype 6 pointsize 0.7
)";

/// In double quotes, with the underscores that gnuplot would take for subscripts.
inline std::string in_quotes(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) result += c == '_' ? std::string("\\\\_") : std::string(1, c);
  return result + "\"";
}

inline std::string data_of(const line& drawn, const std::vector<double>& x, std::size_t index) {
  std::string data = "$line" + std::to_string(index) + " << end_of_data\n";
  for (std::size_t i = 0; i < drawn.values.size(); ++i) {
    char row[128];
    std::snprintf(row, sizeof row, "%.10g %.6g %.6g\n", x[i], drawn.values[i],
                  drawn.errors.empty() ? 0 : drawn.errors[i]);
    data += row;
  }
  return data + "end_of_data\n";
}
inline std::string mark_of(const chart& drawn) {
  if (drawn.training_length == 0) return "";
  const std::string x = std::to_string(drawn.training_length);
  return "set arrow from " + x + ", graph 0 to " + x +
         ", graph 1 nohead linecolor '#777777' dashtype '.'\nset label 'training length' at " + x +
         ", graph 1.03 center textcolor '#555555'\n";
}
}  // namespace detail

inline std::string script_of(const chart& drawn, const std::string& picture) {
  std::string script = detail::chart_style, plots;
  for (std::size_t i = 0; i < drawn.lines.size(); ++i) {
    script += detail::data_of(drawn.lines[i], drawn.x, i);
    const std::string style = " linestyle " + std::to_string(i + 1), source = "$line" + std::to_string(i);
    const bool with_errors = !drawn.lines[i].errors.empty();
    plots += (i > 0 ? ", \\\n     " : "") + source +
             (with_errors ? " using 1:2:3 with yerrorlines" : " using 1:2 with linespoints") + style + " title " +
             detail::in_quotes(drawn.lines[i].title);
  }
  script += "set output " + quoted(picture, "''") + "\nset title " +
            detail::in_quotes("{/:Bold=18 " + drawn.title + "}\\n{/=13 " + drawn.subtitle + "}") + "\nset xlabel " +
            detail::in_quotes(drawn.x_label) + "\nset ylabel " + detail::in_quotes(drawn.y_label) + "\nset xtics (";
  for (std::size_t i = 0; i < drawn.x.size(); ++i)
    script += (i > 0 ? ", " : "") + detail::in_quotes(drawn.x_names[i]) + " " + std::to_string(drawn.x[i]);
  script += ")\nset xrange [" + std::to_string(0.9 * drawn.x.front()) + ":" + std::to_string(1.15 * drawn.x.back()) +
            "]\n" + detail::mark_of(drawn) + std::string(drawn.y_logarithmic ? "set logscale y\n" : "") +
            "set yrange " + drawn.y_range + "\nplot " + plots + "\n";
  return script;
}

/// Errors: gnuplot is missing, or does not draw.
inline void draw(const chart& drawn, const std::filesystem::path& picture) {
  const std::string script = std::filesystem::path(picture).replace_extension(".gp").string();
  std::ofstream(script) << script_of(drawn, picture.string());
  output_of("gnuplot " + quoted(script));
  if (!std::filesystem::exists(picture)) fail("gnuplot did not draw %s", picture.c_str());
}

}  // namespace llama::experiments
