// Results as people and as machines read them.
#pragma once

#include "json.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace llama {

/// Bytes of text that are not UTF-8 are replaced.
inline void print_json(const json& object) {
  std::printf("%s\n", object.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

inline std::int64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

/// Now, as the kernel counts it.
inline std::int64_t resident_memory_bytes() {
  long long pages = 0, resident = 0;
  if (std::FILE* const file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%lld %lld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * ::sysconf(_SC_PAGESIZE);
}

class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// Means of a number that every token has, by position: up to a quarter of the training length L, from there to L / 2,
/// to L, to 2 L, to 4 L and so on.
class position_bins {
 public:
  explicit position_bins(std::int64_t training_length) : first_end_(std::max<std::int64_t>(1, training_length / 4)) {}

  /// Adds a text's numbers, from its first token on.
  void add(const std::vector<float>& numbers) {
    for (std::size_t i = 0, bin = 0; i < numbers.size(); ++i) {
      if (static_cast<std::int64_t>(i) >= first_end_ << bin) ++bin;
      if (bin == bins_.size()) bins_.push_back({});
      bins_[bin].sum += static_cast<double>(numbers[i]);
      ++bins_[bin].count;
    }
  }

  double sum() const {
    double sum = 0;
    for (const auto& bin : bins_) sum += bin.sum;
    return sum;
  }
  double mean() const {
    std::int64_t count = 0;
    for (const auto& bin : bins_) count += bin.count;
    return sum() / static_cast<double>(count);
  }

  /// Of each range that a token came for, in order.
  std::vector<double> means() const {
    std::vector<double> list;
    for (std::size_t i = 0; i < bins_.size(); ++i) list.push_back(mean_of(i));
    return list;
  }

  /// [{"to": position, "mean": ..., "tokens": ...}, ...]
  json as_json() const {
    json list = json::array();
    for (std::size_t i = 0; i < bins_.size(); ++i)
      list.push_back({{"to", first_end_ << i}, {"mean", mean_of(i)}, {"tokens", bins_[i].count}});
    return list;
  }

  void print() const {
    std::puts("   positions up to     nats a token");
    for (std::size_t i = 0; i < bins_.size(); ++i)
      std::printf("%18lld %16.4f\n", static_cast<long long>(first_end_ << i), mean_of(i));
  }

 private:
  struct sum_of {
    double sum = 0;
    std::int64_t count = 0;
  };

  double mean_of(std::size_t i) const { return bins_[i].sum / static_cast<double>(bins_[i].count); }

  std::int64_t first_end_;
  std::vector<sum_of> bins_;
};

/// How many of some trials went well, with Wilson's interval at 95 %.
class share_of {
 public:
  void add(bool good) {
    good_ += good;
    ++all_;
  }

  json as_json() const { return {{"good", good_}, {"of", all_}, {"interval_95", {bound(-1), bound(1)}}}; }

  double share() const { return static_cast<double>(good_) / static_cast<double>(std::max<std::int64_t>(all_, 1)); }

  /// "97 (92 to 99)"; "–" where there was no trial.
  std::string percent() const {
    if (all_ == 0) return "–";
    char text[64];
    std::snprintf(text, sizeof text, "%.0f (%.0f to %.0f)", 100 * share(), 100 * bound(-1), 100 * bound(1));
    return text;
  }

  std::string text() const {
    if (all_ == 0) return "none of none";
    char line[96];
    std::snprintf(line, sizeof line, "%lld of %lld (95 %% interval: %.0f to %.0f %%)", static_cast<long long>(good_),
                  static_cast<long long>(all_), 100 * bound(-1), 100 * bound(1));
    return line;
  }

 private:
  double bound(double side) const {
    constexpr double z = 1.96;
    const auto n = static_cast<double>(std::max<std::int64_t>(all_, 1)), p = share();
    const double half = z * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    return std::clamp((p + z * z / (2 * n) + side * half) / (1 + z * z / n), 0.0, 1.0);
  }

  std::int64_t good_ = 0, all_ = 0;
};

}  // namespace llama
