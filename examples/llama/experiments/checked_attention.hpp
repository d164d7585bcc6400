// The attention of a layer in a long stream, beside what the formula makes of the same keys and values.
#pragma once

#include "../attention.hpp"

#include <lambda_attention/reference.hpp>

#include <cstddef>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

namespace llama::experiments {

/// The attention of a layer, and beside it the sinks and the newest keys and values, from which the newest query is
/// worked out anew by the reference whenever `check` is called before.
///
///     all keys        s s . . . . . . . w w w w q      the sinks at the limit, the window at its true distances
///     these           s s w w w w q                     the same distances: reference::attend() over these alone
class checked_attention final : public layer_attention {
 public:
  checked_attention(std::unique_ptr<layer_attention> inner, const la::lambda_shape& shape,
                    const position_variant& position, const heads_of_layer& heads)
      : inner_(std::move(inner)), shape_(shape), position_(&position), heads_(heads) {}

  void check_next() { check_ = true; }
  /// NMSE: the squared error over the squared size of all rows that were checked.
  double error() const { return error_ / size_; }

  void attend(const la::tensor_view<const float>& q, const la::tensor_view<const float>& k,
              const la::tensor_view<const float>& v, const la::tensor_view<float>& out, bool retrieve) override {
    inner_->attend(q, k, v, out, retrieve);
    keep(k, keys_);
    keep(v, values_);
    if (std::exchange(check_, false)) compare(q, out);
  }
  la::index_t bytes() const override { return inner_->bytes(); }

 private:
  using rows = std::vector<std::vector<float>>;

  // Appends rows, and forgets those that are neither sinks nor in the window.
  void keep(const la::tensor_view<const float>& tokens, rows& kept) const {
    for (la::index_t i = 0; i < tokens.tokens; ++i) {
      std::vector<float> row;
      for (la::index_t head = 0; head < tokens.heads; ++head)
        row.insert(row.end(), tokens.row(i, head), tokens.row(i, head) + tokens.dim);
      kept.push_back(std::move(row));
    }
    const auto most = static_cast<std::size_t>(shape_.num_sinks + shape_.window);
    if (kept.size() > most)
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(shape_.num_sinks),
                 kept.end() - static_cast<std::ptrdiff_t>(shape_.window));
  }

  void compare(const la::tensor_view<const float>& q, const la::tensor_view<float>& out) {
    const auto tokens = static_cast<la::index_t>(keys_.size());
    const std::vector<float> k = flat(keys_), v = flat(values_);
    la::attention_options options;
    options.scale = heads_.scale;
    std::vector<long double> row(static_cast<std::size_t>(q.dim));
    for (la::index_t head = 0; head < q.heads; ++head) {
      const auto attend = [&](const auto& position) {
        la::reference::attend_row(q.row(q.tokens - 1, head), tokens - 1, head, q.heads,
                                  la::token_major(k.data(), tokens, heads_.kv_heads, q.dim),
                                  la::token_major(v.data(), tokens, heads_.kv_heads, q.dim), shape_, position, options,
                                  row.data());
      };
      std::visit(attend, *position_);
      for (std::size_t i = 0; i < row.size(); ++i) {
        const long double got = out.row(out.tokens - 1, head)[i];
        error_ += static_cast<double>((got - row[i]) * (got - row[i]));
        size_ += static_cast<double>(row[i] * row[i]);
      }
    }
  }

  static std::vector<float> flat(const rows& kept) {
    std::vector<float> numbers;
    for (const auto& row : kept) numbers.insert(numbers.end(), row.begin(), row.end());
    return numbers;
  }

  std::unique_ptr<layer_attention> inner_;
  la::lambda_shape shape_;
  const position_variant* position_;
  heads_of_layer heads_;
  rows keys_, values_;
  bool check_ = false;
  double error_ = 0, size_ = 0;
};

}  // namespace llama::experiments
