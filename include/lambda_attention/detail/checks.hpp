// Everything that a call is refused for, and the jobs that the accepted ones become.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/position.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The encoding's demands on a call; 0 stands for none.
struct encoding_limits {
  index_t num_heads;
  index_t head_dim;
  position_data data;
};

template <class Position>
encoding_limits limits_of(const Position& position) {
  return {position.num_heads(), position.head_dim(), position.data()};
}

inline void check_isa(isa_level level, const char* where) {
  if (level >= isa_level::automatic && level <= highest_isa_of_vectors()) return;
  const isa_level highest = highest_isa();
  if (level < isa_level::automatic || level > highest)
    refuse("%s: expected an isa that this machine has, at most %s, got %s", where, name_of(highest), name_of(level));
}

inline void check_dim(index_t dim, const char* where, const char* name) {
  if (dim < 1 || dim > max_head_dim)
    refuse("%s: expected 1 <= %s <= %lld, got %lld", where, name, printable(max_head_dim), printable(dim));
}

inline void check_equal(index_t a, index_t b, const char* where, const char* a_name, const char* b_name) {
  if (a != b) refuse("%s: expected %s == %s, got %lld and %lld", where, a_name, b_name, printable(a), printable(b));
}

// What queries and outputs have to fit, and what the refusals call it.
struct key_value_extents {
  index_t heads, head_dim, v_head_dim;
  const char *heads_name, *head_dim_name, *v_head_dim_name;
};

inline constexpr index_t most_query_heads = index_t{1} << 20;

inline void check_heads(const tensor& q, index_t kv_heads, const char* kv_heads_name, const char* where) {
  if (q.heads > most_query_heads)
    refuse("%s: expected at most 2^20 = %lld q.heads, got %lld", where, printable(most_query_heads),
           printable(q.heads));
  if (kv_heads < 1 || q.heads < 1 || q.heads % kv_heads != 0)
    refuse("%s: expected q.heads %% %s == 0, both at least 1, got q.heads = %lld, %s = %lld", where, kv_heads_name,
           printable(q.heads), kv_heads_name, printable(kv_heads));
}

inline void check_positions(index_t first_position, index_t tokens, const char* where) {
  if (first_position < 0) refuse("%s: expected first_position >= 0, got %lld", where, printable(first_position));
  if (tokens > unlimited - first_position)
    refuse("%s: expected positions below 2^63, got first_position = %lld and %lld tokens", where,
           printable(first_position), printable(tokens));
}

// What an encoding says of itself.
inline void check_data(const encoding_limits& encoding, index_t head_dim, const char* where) {
  const position_data& data = encoding.data;
  const index_t num_pairs = data.rotation.num_pairs;
  if (num_pairs < 0 || num_pairs > head_dim / 2)
    refuse("%s: expected at most head_dim / 2 = %lld pairs in the encoding's rotation, got %lld", where,
           printable(head_dim / 2), printable(num_pairs));
  if (num_pairs > 0 && data.rotation.turns == nullptr)
    refuse("%s: expected an encoding's rotation with turns, got a null pointer", where);
  if ((data.function.turn_f32 == nullptr) != (data.function.turn_f64 == nullptr))
    refuse("%s: expected an encoding's row function for float and for double, got one of them", where);
  if (num_pairs > 0 && data.has_function())
    refuse("%s: expected an encoding with a rotation or a row function, got both", where);
  if (data.slopes != nullptr && data.biases != nullptr)
    refuse("%s: expected an encoding with slopes or biases, got both", where);
  if (data.slopes != nullptr && encoding.num_heads < 1)
    refuse("%s: expected an encoding with slopes to say its num_heads, got %lld", where, printable(encoding.num_heads));
  for (index_t head = 0; data.slopes != nullptr && head < encoding.num_heads; ++head)
    if (!is_within(data.slopes[head], largest_factor))
      refuse("%s: expected an encoding with slopes within +-1e30, got %g for head %lld", where, data.slopes[head],
             printable(head));
  if (!is_within(data.rotation.factor, largest_factor))
    refuse("%s: expected an encoding with a factor within +-1e30, got %g", where, data.rotation.factor);
}

// What keeps rows of keys and values: a cache, a store.
inline void check_rows_to_keep(const encoding_limits& encoding, index_t num_kv_heads, index_t head_dim,
                               index_t v_head_dim, const char* where) {
  if (num_kv_heads < 1 || num_kv_heads > (index_t{1} << 40))
    refuse("%s: expected 1 <= num_kv_heads <= 2^40, got %lld", where, printable(num_kv_heads));
  check_dim(head_dim, where, "head_dim");
  check_dim(v_head_dim, where, "v_head_dim");
  check_data(encoding, head_dim, where);
  if (encoding.head_dim != 0 && encoding.head_dim != head_dim)
    refuse("%s: expected head_dim = %lld, that of the position encoding, got %lld", where, printable(encoding.head_dim),
           printable(head_dim));
}

inline void check_encoding(const encoding_limits& limits, index_t heads, index_t head_dim, const char* where) {
  if (limits.num_heads != 0 && limits.num_heads != heads)
    refuse("%s: expected q.heads = %lld, that of the position encoding, got %lld", where, printable(limits.num_heads),
           printable(heads));
  if (limits.head_dim != 0 && limits.head_dim != head_dim)
    refuse("%s: expected head_dim = %lld, that of the position encoding, got %lld", where, printable(limits.head_dim),
           printable(head_dim));
  if (limits.data.biases != nullptr && limits.data.biases->num_heads() != heads)
    refuse("%s: expected q.heads = %lld, that of the encoding's bias_table, got %lld", where,
           printable(limits.data.biases->num_heads()), printable(heads));
  check_data(limits, head_dim, where);
}

// A number for each row of `out`.
inline void check_lse(const tensor& lse, const tensor& out, const char* where, const char* name) {
  check_tensor(lse, where, name);
  if (lse.tokens != out.tokens || lse.heads != out.heads || lse.dim != 1)
    refuse("%s: expected %s to be [%lld, %lld, 1], got [%lld, %lld, %lld]", where, name, printable(out.tokens),
           printable(out.heads), printable(lse.tokens), printable(lse.heads), printable(lse.dim));
  check_distinct_rows(lse, where, name);
}

inline tensor sink_row_of(const attention_options& options) {
  return erase(tensor_view<const float>(options.sink_logits.data, 1, 1, options.sink_logits.size, 0, 0));
}

inline void check_options(const attention_options& options, const tensor& q, const tensor& out, const char* where) {
  check_isa(options.isa, where);
  if (!is_within(options.scale, largest_factor))
    refuse("%s: expected a finite options.scale within +-1e30, got %g", where, options.scale);
  if (options.soft_cap != 0 && (!is_within(options.soft_cap, largest_factor) || options.soft_cap < 1 / largest_factor))
    refuse("%s: expected options.soft_cap = 0 or 1e-30 <= options.soft_cap <= 1e30, got %g", where, options.soft_cap);
  const sink_logits_view& sinks = options.sink_logits;
  if ((sinks.data != nullptr || sinks.size != 0) && (sinks.data == nullptr || sinks.size != q.heads))
    refuse("%s: expected options.sink_logits with q.heads = %lld numbers, got %lld%s", where, printable(q.heads),
           printable(sinks.size), sinks.data == nullptr ? " at a null pointer" : "");
  const tensor sink_row = sink_row_of(options);
  if (overlap(sink_row, out))
    refuse("%s: expected options.sink_logits not to overlap out, got overlapping memory", where);
  if (options.lse.data == nullptr) return;
  const tensor lse = erase(options.lse);
  check_lse(lse, out, where, "options.lse");
  if (overlap(lse, q) || overlap(lse, out) || overlap(lse, sink_row))
    refuse("%s: expected options.lse not to overlap q, out or options.sink_logits, got overlapping memory", where);
}

// Queries and outputs of any call.
inline void check_queries(const tensor& q, const tensor& out, const key_value_extents& keys,
                          const encoding_limits& limits, const attention_options& options, const char* where) {
  check_tensor(q, where, "q");
  check_tensor(out, where, "out");
  check_dim(q.dim, where, "q.dim");
  check_heads(q, keys.heads, keys.heads_name, where);
  check_equal(q.dim, keys.head_dim, where, "q.dim", keys.head_dim_name);
  check_equal(out.tokens, q.tokens, where, "out.tokens", "q.tokens");
  check_equal(out.heads, q.heads, where, "out.heads", "q.heads");
  check_equal(out.dim, keys.v_head_dim, where, "out.dim", keys.v_head_dim_name);
  check_encoding(limits, q.heads, q.dim, where);
  check_distinct_rows(out, where, "out");
  if (!same_rows(out, q)) check_alias(out, q, where, "q");
  check_options(options, q, out, where);
}

inline void check_keys(const tensor& k, const tensor& v, const char* where) {
  check_tensor(k, where, "k");
  check_tensor(v, where, "v");
  check_dim(k.dim, where, "k.dim");
  check_dim(v.dim, where, "v.dim");
  check_equal(v.tokens, k.tokens, where, "v.tokens", "k.tokens");
  check_equal(v.heads, k.heads, where, "v.heads", "k.heads");
}

inline void check_not_k_or_v(const tensor& written, const char* name, const tensor& k, const tensor& v,
                             const char* where) {
  if (written.data != nullptr && (overlap(written, k) || overlap(written, v)))
    refuse("%s: expected %s not to overlap k or v, got overlapping memory", where, name);
}

// Weights of queries that are followed by index `last`.
inline void check_weights(const attention_options& options, const lambda_shape& shape, index_t last, index_t kv_heads,
                          const tensor& q, const tensor& out, const char* where) {
  if (options.weights.data == nullptr) return;
  const tensor weights = erase(options.weights);
  check_tensor(weights, where, "options.weights");
  const index_t most = most_tokens_by_position(q.heads / kv_heads);
  if (q.tokens > most)
    refuse("%s: expected at most %lld tokens with options.weights, got %lld", where, printable(most),
           printable(q.tokens));
  const index_t sinks = min(shape.num_sinks, last), columns = sinks + min(shape.window, last - sinks);
  if (weights.tokens != q.tokens || weights.heads != q.heads || weights.dim < columns)
    refuse("%s: expected options.weights to be [%lld, %lld, at least %lld], got [%lld, %lld, %lld]", where,
           printable(q.tokens), printable(q.heads), printable(columns), printable(weights.tokens),
           printable(weights.heads), printable(weights.dim));
  check_distinct_rows(weights, where, "options.weights");
  if (overlap(weights, q) || overlap(weights, out) ||
      (options.lse.data != nullptr && overlap(weights, erase(options.lse))) || overlap(weights, sink_row_of(options)))
    refuse(
        "%s: expected options.weights not to overlap q, out, options.lse or options.sink_logits, got "
        "overlapping memory",
        where);
}

// What of a job does not depend on where its keys are.
template <class Real>
attention_job<Real> job_of(const tensor& q, const tensor& out, const attention_options& options) {
  attention_job<Real> job = {};
  job.q = q;
  job.out = out;
  job.lse = erase(options.lse);
  job.weights = erase(options.weights);
  job.sink_logits = options.sink_logits.data;
  const double scale = options.scale != 0 ? options.scale : 1 / __builtin_sqrt(static_cast<double>(q.dim));
  job.scale = static_cast<Real>(scale * log2_e);
  job.soft_cap = static_cast<Real>(options.soft_cap * log2_e);
  return job;
}

// Null where dims do not fit the kernels.
template <class Real>
const pair_kernels<Real>* pairs_of_dims(const attention_job<Real>& job, const pair_kernels<Real>* pairs) {
  const bool fit =
      pairs != nullptr && job.head_dim() % pairs->dims_per_step == 0 && job.v_head_dim() % pairs->dims_per_step == 0;
  return fit ? pairs : nullptr;
}

// Keys and values that are bfloat16s are taken in pairs, where there are kernels that multiply such rows. A cache has sinks of
// other numbers. `pairs` fit the dims.
template <class Real>
void choose_pairs(attention_job<Real>& job, const pair_kernels<Real>* pairs) {
  const auto bfloat16s = [&](key_kind near, key_kind far, const row_store<Real>& values) {
    const row_store<Real>* const keys = job.rows.keys;
    return keys[static_cast<int>(near)].format == row_format::bf16 &&
           keys[static_cast<int>(far)].format == row_format::bf16 && values.format == row_format::bf16;
  };
  // What is copied for few queries is copied as numbers.
  const auto multiplied = [&](key_kind near) { return !job.by_position() || job.as_stored(near); };
  job.pairs = pairs;
  job.sinks_in_pairs = pairs != nullptr && multiplied(key_kind::sinks_near) &&
                       bfloat16s(key_kind::sinks_near, key_kind::sinks_far, job.rows.sink_values);
  job.window_in_pairs = pairs != nullptr && multiplied(key_kind::window_near) &&
                        bfloat16s(key_kind::window_near, key_kind::window_far, job.rows.window_values);
}

// The kernels of a stream, whose few queries are read off the rows as they lie.
template <class Real>
void choose_kernels(attention_job<Real>& job, const pair_kernels<Real>* pairs, isa_level isa) {
  pairs = pairs_of_dims(job, pairs);
  job.one_position = &position_kernels_for<Real>(isa, pairs != nullptr);
  choose_pairs(job, pairs);
}

// What of keys the kernels meet: rows turned to their own position, or, where they count as farther than they are, to zero.
template <class Real>
void choose_rotations(attention_job<Real>& job) {
  const position_data& encoding = job.encoding;
  const bool turns_at_zero = encoding.has_function() || encoding.rotation.factor != 1;
  const row_rotation near = encoding.rotates() ? row_rotation::to_position : row_rotation::none;
  const row_rotation at_zero = encoding.rotates() && turns_at_zero ? row_rotation::to_zero : row_rotation::none;
  row_rotation* const wanted = job.rows.wanted;
  wanted[static_cast<int>(key_kind::sinks_near)] = near;
  wanted[static_cast<int>(key_kind::window_near)] = near;
  wanted[static_cast<int>(key_kind::window_far)] = at_zero;
  wanted[static_cast<int>(key_kind::sinks_far)] = job.plan.slots() ? near : at_zero;
}

// A whole sequence: rows are turned as they are read.
template <class Real>
attention_job<Real> checked_sequence_job(const tensor& q, const tensor& k, const tensor& v, const tensor& out,
                                         const lambda_shape& shape, const encoding_limits& limits,
                                         const attention_options& options,
                                         const pair_kernels<Real>* (*pairs)(isa_level), const char* where) {
  const position_data& encoding = limits.data;
  check_shape(shape, where);
  check_keys(k, v, where);
  check_queries(q, out, {k.heads, k.dim, v.dim, "k.heads", "k.dim", "v.dim"}, limits, options, where);
  check_equal(k.tokens, q.tokens, where, "k.tokens", "q.tokens");
  check_alias(out, k, where, "k");
  check_alias(out, v, where, "v");
  check_not_k_or_v(erase(options.lse), "options.lse", k, v, where);
  if (options.weights.data != nullptr)
    refuse("%s: expected no options.weights for a whole sequence, got %lld columns", where,
           printable(options.weights.dim));
  check_positions(options.first_position, q.tokens, where);

  attention_job<Real> job = job_of<Real>(q, out, options);
  job.num_kv_heads = k.heads;
  job.first_position = static_cast<std::uint64_t>(options.first_position);
  job.plan = {shape, encoding.rotates() || encoding.has_bias()};
  job.encoding = encoding;
  for (row_store<Real>& keys : job.rows.keys) keys = store_of<Real>(k);
  choose_rotations(job);
  job.rows.sink_values = job.rows.window_values = store_of<Real>(v);
  choose_pairs(job, pairs_of_dims(job, pairs == nullptr ? nullptr : pairs(options.isa)));
  return job;
}

// Queries of the newest q.tokens tokens of a stream that has num_tokens, those included.
template <class Real>
attention_job<Real> stream_job(const tensor& q, const tensor& out, const cache_core<Real>& cache, index_t num_tokens,
                               const position_data& encoding, const attention_options& options) {
  attention_job<Real> job = job_of<Real>(q, out, options);
  job.first_query = num_tokens - q.tokens;
  job.num_kv_heads = cache.shape().num_kv_heads;
  job.first_position = static_cast<std::uint64_t>(cache.shape().first_position);
  job.plan = cache.shape().plan;
  job.encoding = encoding;
  job.rows = cache.rows();
  choose_kernels(job, cache.pairs(options.isa), options.isa);
  return job;
}

// Queries of a stream, of which the last is followed by index `last`.
template <class Real>
void check_stream_queries(const tensor& q, const tensor& out, const cache_core<Real>& cache, index_t last,
                          const encoding_limits& limits, const attention_options& options, const char* where) {
  const auto& shape = cache.shape();
  const key_value_extents keys = {shape.num_kv_heads,   shape.head_dim,   shape.v_head_dim,
                                  "cache.num_kv_heads", "cache.head_dim", "cache.v_head_dim"};
  check_queries(q, out, keys, limits, options, where);
  check_weights(options, shape.plan.shape, last, shape.num_kv_heads, q, out, where);
  if (options.first_position != 0)
    refuse("%s: expected options.first_position = 0 with a cache, which has its own, got %lld", where,
           printable(options.first_position));
}

template <class Real>
void check_stream_keys(const tensor& k, const tensor& v, const cache_core<Real>& cache, const char* where) {
  check_keys(k, v, where);
  check_equal(k.heads, cache.shape().num_kv_heads, where, "k.heads", "cache.num_kv_heads");
  check_equal(k.dim, cache.shape().head_dim, where, "k.dim", "cache.head_dim");
  check_equal(v.dim, cache.shape().v_head_dim, where, "v.dim", "cache.v_head_dim");
  if (k.tokens > most_stream_tokens - cache.num_tokens())
    refuse("%s: expected a stream of at most 2^62 tokens, got %lld and %lld more", where, printable(cache.num_tokens()),
           printable(k.tokens));
  check_positions(cache.shape().first_position, cache.num_tokens() + k.tokens, where);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
