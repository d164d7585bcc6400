// The contract of a position encoding. Those of the library are in position/; a new one is one more header there.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/buffer.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {

/// Which two elements of a row a rotation turns together: p and p + num_pairs (half_split: Llama, GPT-NeoX), or 2p and
/// 2p + 1 (interleaved: GPT-J, the RoFormer paper).
enum class pair_layout { half_split, interleaved };

/// A rotation R(position) of a row: pair p turns by position * turns[p] / 2^64 of a full turn and is multiplied by
/// `factor`; elements past the last pair stay as they are. num_pairs == 0: no rotation.
struct rotation_data {
  const std::uint64_t* turns = nullptr;
  index_t num_pairs = 0;
  pair_layout layout = pair_layout::half_split;
  double factor = 1;
};

/// Which rotation a row has been through.
enum class row_rotation {
  none,         ///< as the projection left it
  to_position,  ///< R(position) of its own position, as most engines keep keys
  to_zero,      ///< R(0), which is the row times the rotation's factor
};

/// A rotation that no table of frequencies describes: a function that turns one row in place, R(position) row. The inner
/// product of two rows that it has turned may depend on the difference of their positions only. It runs while rows are
/// copied, never inside a kernel, in several threads at once, and must not throw. Both functions are given, `self` where they
/// need it. See row_function_of.
struct row_function {
  const void* self = nullptr;
  void (*turn_f32)(const void* self, std::uint64_t position, float* row, index_t head_dim) = nullptr;
  void (*turn_f64)(const void* self, std::uint64_t position, double* row, index_t head_dim) = nullptr;
};

/// The row_function of an encoding that has a member
/// `template <class Real> void turn(std::uint64_t position, Real* row, index_t head_dim) const noexcept`.
template <class Encoding>
row_function row_function_of(const Encoding& encoding) {
  row_function function;
  function.self = &encoding;
  function.turn_f32 = [](const void* self, std::uint64_t position, float* row, index_t head_dim) {
    static_cast<const Encoding*>(self)->turn(position, row, head_dim);
  };
  function.turn_f64 = [](const void* self, std::uint64_t position, double* row, index_t head_dim) {
    static_cast<const Encoding*>(self)->turn(position, row, head_dim);
  };
  return function;
}

/// Biases by distance for each head, a distance past the last entry taking the last one. It is kept as the kernels read
/// it: in both precisions, times log2(e), each head's row preceded and followed by copies of its end entries, so that a
/// vector load that starts anywhere near the table stays inside it.
class bias_table {
 public:
  static constexpr index_t margin = 16;

  bias_table() = default;

  /// Zero everywhere. Errors: a number below 1 or above 2^30, or a product of the two above 2^40.
  bias_table(index_t num_heads, index_t num_distances)
      : num_heads_(num_heads),
        num_distances_(num_distances),
        f32_(checked_size(num_heads, num_distances)),
        f64_(f32_.size()) {}

  // Where memory runs out in the middle of a copy, nothing is assigned. What was moved from can be assigned to, or destroyed.
  bias_table(const bias_table&) = default;
  bias_table(bias_table&&) = default;
  bias_table& operator=(const bias_table& other) { return *this = bias_table(other); }
  bias_table& operator=(bias_table&&) = default;

  /// Sets the bias, in natural units, of one head at one distance. Errors: either out of range, a bias that is not within +-1e30.
  void set(index_t head, index_t distance, double bias) {
    if (head < 0 || head >= num_heads_ || distance < 0 || distance >= num_distances_ ||
        !detail::is_within(bias, detail::largest_factor))
      detail::refuse("bias_table: expected head < %lld, distance < %lld and a bias within +-1e30, got %lld, %lld, %g",
                     detail::printable(num_heads_), detail::printable(num_distances_), detail::printable(head),
                     detail::printable(distance), bias);
    const index_t first = distance == 0 ? -margin : distance;
    const index_t last = distance == num_distances_ - 1 ? num_distances_ + margin : distance + 1;
    for (index_t d = first; d < last; ++d) {
      f64_[head * row_size() + margin + d] = bias * 1.4426950408889634074;
      f32_[head * row_size() + margin + d] = static_cast<float>(bias * 1.4426950408889634074);
    }
  }

  index_t num_heads() const { return num_heads_; }
  index_t num_distances() const { return num_distances_; }
  /// For the kernels; 0 <= head < num_heads().
  const float* row(index_t head, float) const { return f32_.data() + head * row_size() + margin; }
  const double* row(index_t head, double) const { return f64_.data() + head * row_size() + margin; }

 private:
  static index_t checked_size(index_t num_heads, index_t num_distances) {
    constexpr index_t most = index_t{1} << 30;
    if (num_heads < 1 || num_heads > most || num_distances < 1 || num_distances > most ||
        num_heads * num_distances > (index_t{1} << 40))
      detail::refuse("bias_table: expected at least 1 head and 1 distance and at most 2^40 entries, got %lld x %lld",
                     detail::printable(num_heads), detail::printable(num_distances));
    return num_heads * (num_distances + 2 * margin);
  }
  index_t row_size() const { return num_distances_ + 2 * margin; }

  index_t num_heads_ = 0;
  index_t num_distances_ = 0;
  detail::buffer<float> f32_;
  detail::buffer<double> f64_;
};

/// All that the kernels are told of an encoding. At most one of rotation and function, and at most one of slopes and
/// biases, may be given; an encoding with slopes says its num_heads(). Slopes and the rotation's factor are within +-1e30. The
/// pointers are the encoding's own and live as long as it does.
struct position_data {
  rotation_data rotation;
  row_function function;
  const double* slopes = nullptr;      ///< a slope for each query head: bias = -slope * distance
  const bias_table* biases = nullptr;  ///< bias = table(head, distance)

  constexpr bool has_function() const { return function.turn_f32 != nullptr; }
  constexpr bool rotates() const { return rotation.num_pairs > 0 || has_function(); }
  constexpr bool has_bias() const { return slopes != nullptr || biases != nullptr; }
};

/// Base of the encodings: what one gets that does not say otherwise. An encoding is a class that derives from this and
/// has `position_data data() const`; it hides the members below that are not true of it. A cache keeps a copy, whose moves
/// must be noexcept.
///
/// score() and bias() are the formula of the encoding, written down plainly for reference.hpp; the kernels do not use
/// them. 0 <= head < num_heads(), distance >= 0. `query` and `key` are head_dim numbers that no rotation has touched.
struct position_encoding {
  /// The number of query heads that the encoding is made for; 0: any.
  index_t num_heads() const { return 0; }
  /// The head_dim that the encoding is made for; 0: any.
  index_t head_dim() const { return 0; }

  long double score(const long double* query, const long double* key, index_t head_dim, index_t /*distance*/) const {
    long double sum = 0;
    for (index_t d = 0; d < head_dim; ++d) sum += query[d] * key[d];
    return sum;
  }
  long double bias(index_t /*head*/, index_t /*distance*/) const { return 0; }
};

}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
