// What the kernels are given and what they are, tables of functions for each instruction set and each type that they compute
// in. The text of the kernels is in the .inl files beside this one; it is compiled once for each instruction set,
// whatever the flags of the translation unit are, and the table is chosen at run time.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/storage.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lambda_attention: its kernels read 16-bit numbers as the halves of words, least significant bytes first"
#endif

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

inline constexpr int max_tile_vectors = 4;
inline constexpr int most_queries_by_position = 16;  // of those that are read off rows of numbers together
inline constexpr index_t keys_per_block = 96;        // a whole number of register blocks of 4 and of 6 keys
inline constexpr index_t row_multiple = 16;  // scratch and cache rows are padded with zeros to this many elements

// Scores are kept in units of log2: e^logit = 2^score.
inline constexpr double log2_e = 1.4426950408889634074;

// A pair that the mask hides scores this much: no score of a visible pair comes near it, for logits within +-1e30, and it is no
// infinity, whose difference with itself would be a NaN. A running maximum begins between the two, so that what is hidden weighs
// nothing from the start, and the first visible pair replaces it.
inline constexpr float hidden_score = -2e30f;
inline constexpr float first_running_max = -1.5e30f;
static_assert(first_running_max < -1e30 * log2_e && hidden_score < first_running_max, "visible, maximum, hidden");

template <class Real>
struct integer_of;
template <>
struct integer_of<float> {
  using type = std::int32_t;
  using unsigned_type = std::uint32_t;
};
template <>
struct integer_of<double> {
  using type = std::int64_t;
  using unsigned_type = std::uint64_t;
};

// The softmax state of up to four vectors of queries of one KV head. Lanes are queries: vector v holds positions
// v / heads * lanes ... of query head v % heads. Panels hold a row of all lanes for each dim:
//
//              vector 0      vector 1      vector 2      vector 3
//     dim 0   q0 ... q15    q16 ... q31   q32 ... q47   q48 ... q63
//     dim 1   q0 ... q15    ...
template <class Real>
struct tile_state {
  index_t head_dim;
  index_t v_head_dim;
  index_t width;                 // lanes of the whole tile
  Real* output;                  // panel [v_head_dim][width], not yet divided by the sum
  Real* scores;                  // [keys_per_block][width]
  Real* running_max;             // [width], may be stale: no score is above it by more than the lazy-rescale threshold
  Real* sum;                     // [width], of 2^(score - running_max)
  Real* sum_of_block;            // [width], of those keys that are not yet in it
  const Real* position;          // [width], of each lane in the tile
  Real slope[max_tile_vectors];  // per vector, times log2(e); zeros without ALiBi
  const Real* bias_row[max_tile_vectors];  // per vector, of a bias_table; null without one
  index_t num_distances;                   // of the bias_table
  Real soft_cap;                           // times log2(e); 0: none
  bool has_slope;
};

// Keys of one segment, contiguous in memory. The distance that the bias of (lane, key k) is taken at is
// distance + lane_step * position - key_step * k.
template <class Real>
struct tile_keys {
  const Real* queries;  // panel [words of a key][width], times scale * log2(e)
  const Real* keys;
  const Real* values;
  index_t key_stride;
  index_t value_stride;
  index_t num_keys;
  int first_vector;
  int num_vectors;
  bool masked;
  index_t lowest;  // key k is seen from positions lowest + k ... highest + k
  index_t highest;
  index_t distance;
  int lane_step;
  int key_step;
  index_t missing;  // keys before the first that belong to its step: see pair_kernels
};

// Rows as a cache stores them, or a caller, for a few queries. What the kernels read of a row is a multiple of row_multiple: a
// cache has zeros behind the numbers.
struct stored_rows {
  row_format format;
  const unsigned char* keys;
  const unsigned char* values;
  const float* key_scales;    // int8 only
  const float* value_scales;  // int8 only
  index_t key_row_bytes;
  index_t value_row_bytes;
  index_t num_keys;

  // Where rows are read in several passes, for other heads each, a pass asks for its share of the rows that come later, so
  // that memory is never idle: with every row from as much farther on, at first so many bytes behind the first row.
  index_t num_passes = 1;
  index_t keys_ahead = 0;
  index_t values_ahead = 0;
  bool asked_for = false;  // these rows were: the kernels ask for no others
  bool read_once = false;  // by one query, in the order in which they lie

  // At most `most` rows from `first` on.
  stored_rows part(index_t first, index_t most) const {
    stored_rows rows = *this;
    rows.keys += first * key_row_bytes;
    rows.values += first * value_row_bytes;
    rows.keys_ahead += first * (key_row_bytes / num_passes - key_row_bytes);
    rows.values_ahead += first * (value_row_bytes / num_passes - value_row_bytes);
    if (key_scales != nullptr) rows.key_scales += first;
    if (value_scales != nullptr) rows.value_scales += first;
    rows.num_keys = min(most, num_keys - first);
    return rows;
  }

  // These rows as one of `count` passes sees them, which together ask for as many rows behind them.
  stored_rows in_pass(index_t pass, index_t count) const {
    stored_rows rows = *this;
    rows.num_passes = count;
    rows.keys_ahead = num_keys * (key_row_bytes + pass * (key_row_bytes / count));
    rows.values_ahead = num_keys * (value_row_bytes + pass * (value_row_bytes / count));
    return rows;
  }
};

// What is asked for before it is read, and how far on it is for the row after.
struct row_fetcher {
  const unsigned char* next;
  index_t step;
};

// The kernels are in three tables, for a unit compiles those of the tables that it asks for: most of the time is theirs.
template <class Real>
struct kernel_table {
  index_t lanes;
  int tile_vectors;

  // Tiles of queries.
  void (*begin_tile)(tile_state<Real>& tile);
  void (*add_keys)(tile_state<Real>& tile, const tile_keys<Real>& keys);
  // `lanes` rows times `scale` to one vector of a panel, and back, lane l times scale[l].
  void (*pack)(const Real* rows, index_t row_stride, index_t dim, Real scale, Real* panel, index_t width);
  void (*unpack)(const Real* panel, index_t width, const Real* scale, index_t dim, Real* rows, index_t row_stride);

  // Rows.
  void (*cos_sin)(const rotation_data& rotation, std::uint64_t first, index_t count, Real* angles);
  void (*rotate)(const rotation_data& rotation, const Real* angles, index_t dim, const Real* row, Real* rotated);
  void (*read_row)(row_format format, const void* source, index_t count, Real scale, Real* row);
  // Returns the scale, 1 in formats that have none.
  float (*write_row)(row_format format, const Real* row, index_t count, void* destination);
};

// Tiles whose keys and values are pairs of bfloat16s, two in a word: write_keys makes a row of keys; keys 2i and 2i + 1 share
// a row of values, to which join_values brings each. Where dim is odd, a zero follows the numbers of a row; up to 32 numbers
// are read at a time.
//
// Keys are taken in steps of keys_per_step, from key 0 on. Where that is more than a pair, all rows of a step are read, also of
// keys that are not there.
template <class Real>
struct pair_kernels {
  index_t keys_per_step;
  index_t dims_per_step;  // head_dim and v_head_dim are to be multiples
  void (*add_keys)(tile_state<Real>& tile, const tile_keys<Real>& keys);
  void (*pack)(const Real* rows, index_t row_stride, index_t dim, Real scale, Real* panel, index_t width);
  void (*write_keys)(const Real* row, index_t dim, Real* words);
  void (*join_values)(const unsigned char* row, index_t dim, bool odd, Real* words);
};

// Queries of one KV head, `heads` of them, at any positions: 4, 2 or 1, or, where queries_at_once is more, as many as that
// or fewer.
template <class Real>
struct position_kernels {
  int queries_at_once;
  int most_queries;     // that are better read off rows as they lie than in tiles
  int fewest_in_pairs;  // of which the weights are rounded where rows are taken in pairs; of no meaning where none are
  // `queries` are rows of `padded_dim`; scores are [heads][score_stride].
  void (*score_rows)(const Real* queries, int heads, index_t padded_dim, const stored_rows& rows, Real* scores,
                     index_t score_stride);
  void (*adjust_scores)(Real* scores, index_t num_keys, Real soft_cap, Real slope, const Real* bias_row,
                        index_t num_distances, index_t distance, int key_step);
  // scores -> 2^(score - max); returns the max, *sum the sum.
  Real (*softmax)(Real* scores, index_t num_keys, Real* sum);
  Real (*softmax_in_pairs)(Real* scores, index_t num_keys, Real* sum);  // for rows that add_values takes in pairs
  void (*add_values)(const Real* weights, index_t weight_stride, int heads, index_t padded_dim, const stored_rows& rows,
                     Real* output);
};

// The text of the kernels names no ISA: it is written over vectors of `vector_bytes` and a few functions of its ISA. Where
// the unit itself is compiled for a higher ISA, the lower ones switch that off, so that asking for one gives it.
#define LAMBDA_ATTENTION_BEGIN_TARGET_GCC(flags) _Pragma("GCC push_options") LAMBDA_ATTENTION_PRAGMA(GCC target(flags))
#define LAMBDA_ATTENTION_BEGIN_TARGET_CLANG(flags) \
  LAMBDA_ATTENTION_PRAGMA(clang attribute push(__attribute__((target(flags))), apply_to = function))
#define LAMBDA_ATTENTION_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define LAMBDA_ATTENTION_BEGIN_TARGET(flags) LAMBDA_ATTENTION_BEGIN_TARGET_CLANG(flags)
#define LAMBDA_ATTENTION_END_TARGET LAMBDA_ATTENTION_PRAGMA(clang attribute pop)
#define LAMBDA_ATTENTION_UNROLL LAMBDA_ATTENTION_PRAGMA(clang loop unroll(full))
#define LAMBDA_ATTENTION_UNROLL_TWICE LAMBDA_ATTENTION_PRAGMA(clang loop unroll_count(2))
#else
#define LAMBDA_ATTENTION_BEGIN_TARGET(flags) LAMBDA_ATTENTION_BEGIN_TARGET_GCC(flags)
#define LAMBDA_ATTENTION_END_TARGET _Pragma("GCC pop_options")
#define LAMBDA_ATTENTION_UNROLL _Pragma("GCC unroll 64")
#define LAMBDA_ATTENTION_UNROLL_TWICE _Pragma("GCC unroll 2")
#endif
#define LAMBDA_ATTENTION_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)

#if defined(__AVX__)
LAMBDA_ATTENTION_BEGIN_TARGET("no-avx")
#define LAMBDA_ATTENTION_LOWERED
#endif
namespace baseline {
#include <lambda_attention/detail/isa_baseline.inl>
#include <lambda_attention/detail/kernel_text.inl>
}  // namespace baseline
#ifdef LAMBDA_ATTENTION_LOWERED
LAMBDA_ATTENTION_END_TARGET
#undef LAMBDA_ATTENTION_LOWERED
#endif

#if defined(__AVX512F__)
LAMBDA_ATTENTION_BEGIN_TARGET("avx2,fma,f16c,no-avx512f")
#else
LAMBDA_ATTENTION_BEGIN_TARGET("avx2,fma,f16c")
#endif
namespace avx2 {
#include <lambda_attention/detail/isa_avx2.inl>
#include <lambda_attention/detail/kernel_text.inl>
}  // namespace avx2
LAMBDA_ATTENTION_END_TARGET

LAMBDA_ATTENTION_BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include <lambda_attention/detail/isa_avx512.inl>
#include <lambda_attention/detail/kernel_text.inl>
}  // namespace avx512
LAMBDA_ATTENTION_END_TARGET

LAMBDA_ATTENTION_BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace avx512::bytes {
#include <lambda_attention/detail/isa_avx512_vnni.inl>
#include <lambda_attention/detail/kernel_text_bytes.inl>
}  // namespace avx512::bytes
LAMBDA_ATTENTION_END_TARGET

LAMBDA_ATTENTION_BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
namespace avx512::pairs {
#include <lambda_attention/detail/isa_avx512_bf16.inl>
#include <lambda_attention/detail/kernel_text_pairs.inl>
}  // namespace avx512::pairs
LAMBDA_ATTENTION_END_TARGET

LAMBDA_ATTENTION_BEGIN_TARGET(
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")
namespace avx512::pairs::matrices {
#include <lambda_attention/detail/isa_amx_bf16.inl>
#include <lambda_attention/detail/kernel_text_matrices.inl>
}  // namespace avx512::pairs::matrices
LAMBDA_ATTENTION_END_TARGET

#else

namespace baseline {
#if defined(__aarch64__)
#include <lambda_attention/detail/isa_neon.inl>
#else
#include <lambda_attention/detail/isa_baseline.inl>
#endif
#include <lambda_attention/detail/kernel_text.inl>
}  // namespace baseline

#endif

#undef LAMBDA_ATTENTION_BEGIN_TARGET_GCC
#undef LAMBDA_ATTENTION_BEGIN_TARGET_CLANG
#undef LAMBDA_ATTENTION_BEGIN_TARGET
#undef LAMBDA_ATTENTION_END_TARGET
#undef LAMBDA_ATTENTION_UNROLL
#undef LAMBDA_ATTENTION_UNROLL_TWICE
#undef LAMBDA_ATTENTION_INLINE
#undef LAMBDA_ATTENTION_PRAGMA

// The kernels of an instruction set that this machine has: the one asked for, or the fastest.
template <class Real>
const kernel_table<Real>& kernels_for(isa_level level) {
#if defined(__x86_64__)
  if (level == isa_level::automatic) level = isa_of_vectors();
  if (level >= isa_level::avx512) return avx512::kernels<Real>::table();
  if (level == isa_level::avx2) return avx2::kernels<Real>::table();
#else
  static_cast<void>(level);
#endif
  return baseline::kernels<Real>::table();
}
template <class Real>
const position_kernels<Real>& position_kernels_for(isa_level level, bool in_pairs) {
#if defined(__x86_64__)
  if (level == isa_level::automatic) level = in_pairs ? isa() : isa_of_vectors();
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (in_pairs && level == isa_level::amx_bf16) return avx512::pairs::matrices::kernels<Real>::one_position();
    if (in_pairs && level == isa_level::avx512_bf16) return avx512::pairs::kernels<Real>::one_position();
    if (level > isa_level::avx512) return avx512::bytes::kernels<Real>::one_position();
  }
  if (level >= isa_level::avx512) return avx512::kernels<Real>::one_position();
  if (level == isa_level::avx2) return avx2::kernels<Real>::one_position();
#else
  static_cast<void>(level), static_cast<void>(in_pairs);
#endif
  return baseline::kernels<Real>::one_position();
}
// Null where the ISA does not multiply pairs.
template <class Real>
const pair_kernels<Real>* pair_kernels_for(isa_level level) {
#if defined(__x86_64__)
  if (level == isa_level::automatic) level = isa();
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (level == isa_level::amx_bf16) return &avx512::pairs::matrices::kernels<Real>::table();
    if (level == isa_level::avx512_bf16) return &avx512::pairs::kernels<Real>::table();
  }
#else
  static_cast<void>(level);
#endif
  return nullptr;
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
