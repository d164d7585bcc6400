// Numbers as text, and a table of them.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

namespace demo {

__attribute__((format(printf, 1, 2))) inline std::string format(const char* pattern, ...) {
  char text[512];
  va_list numbers;
  va_start(numbers, pattern);
  std::vsnprintf(text, sizeof text, pattern, numbers);
  va_end(numbers);
  return text;
}

/// Three digits and a unit: the largest of `units`, each `step` times the one before, that leaves a number of 1 or more.
inline std::string with_unit(double number, double step, const std::vector<const char*>& units) {
  std::size_t unit = 0;
  for (; unit + 1 < units.size() && number >= 0.9995 * step; ++unit) number /= step;
  return format("%.*f %s", number < 9.995 ? 2 : number < 99.95 ? 1 : 0, number, units[unit]);
}
inline std::string time_text(double seconds) { return with_unit(1e9 * seconds, 1000, {"ns", "us", "ms", "s"}); }
inline std::string bytes_text(double bytes) { return with_unit(bytes / 1024, 1024, {"KiB", "MiB", "GiB"}); }
inline std::string count_text(double count) { return with_unit(count / 1e3, 1000, {"k", "M", "G"}); }
inline std::string times_text(double ratio) { return format("%.*fx", ratio < 9.95 ? 1 : 0, ratio); }
inline std::string mebibytes_text(double bytes) {
  return format("%.*f", bytes < 99.95 * 1048576 ? 1 : 0, bytes / 1048576);
}

/// Characters, not bytes, of a UTF-8 text.
inline std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

/// Columns aligned to the right, under headings that span several of them.
class table {
 public:
  struct heading {
    std::string text;
    std::size_t columns;
  };

  table(std::vector<heading> headings, std::vector<std::string> names)
      : headings_(std::move(headings)), rows_{std::move(names)} {}

  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  void print() const {
    const std::vector<std::size_t> widths = column_widths();
    print_headings(widths);
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i)
        std::printf("%s%*s%s",
                    i == 0            ? ""
                    : starts_group(i) ? gap
                                      : "  ",
                    padding(widths[i], row[i]), "", row[i].c_str());
      std::printf("\n");
    }
  }

 private:
  static constexpr const char* gap = "    ";

  static int padding(std::size_t room, const std::string& text) {
    return static_cast<int>(room - std::min(room, width(text)));
  }

  bool starts_group(std::size_t column) const {
    for (std::size_t i = 0, first = 0; i < headings_.size(); first += headings_[i++].columns)
      if (first == column) return true;
    return false;
  }

  std::size_t group_width(std::size_t first, std::size_t columns, const std::vector<std::size_t>& widths) const {
    std::size_t sum = 2 * (columns - 1);
    for (std::size_t i = first; i < first + columns; ++i) sum += widths[i];
    return sum;
  }

  std::vector<std::size_t> column_widths() const {
    std::vector<std::size_t> widths(rows_[0].size());
    for (const auto& row : rows_)
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
    for (std::size_t i = 0, first = 0; i < headings_.size(); first += headings_[i++].columns) {
      const std::size_t wide = group_width(first, headings_[i].columns, widths), wanted = width(headings_[i].text);
      if (wanted > wide) widths[first] += wanted - wide;
    }
    return widths;
  }

  /// Each heading in the middle of its columns.
  void print_headings(const std::vector<std::size_t>& widths) const {
    for (std::size_t i = 0, first = 0; i < headings_.size(); first += headings_[i++].columns) {
      const int spare = padding(group_width(first, headings_[i].columns, widths), headings_[i].text);
      std::printf("%s%*s%s%*s", i == 0 ? "" : gap, spare - spare / 2, "", headings_[i].text.c_str(), spare / 2, "");
    }
    std::printf("\n");
  }

  std::vector<heading> headings_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace demo
