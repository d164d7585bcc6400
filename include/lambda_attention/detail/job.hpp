// One stream's share of a call, after the checks: everything the drivers need, no user type left in it.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/tensor.hpp>
#include <lambda_attention/position.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Keys and values of a stream. `keys` is indexed by key_kind.
template <class Real>
struct key_value_rows {
  row_store<Real> keys[num_key_kinds];
  row_rotation wanted[num_key_kinds];
  row_store<Real> sink_values;
  row_store<Real> window_values;
  // Whether the kernels for few queries can read keys and values where they lie.
  bool sinks_as_stored;
  bool window_as_stored;
};

// Tokens that are read off the rows of one KV head together, with the heads of its group, by any kernels; some take more.
constexpr index_t most_tokens_by_position(index_t group, index_t most_queries = most_queries_by_position) {
  return max(4, most_queries / group);
}

template <class Real>
struct attention_job {
  tensor q;
  tensor out;
  tensor lse;           // float or double; no data: not wanted
  tensor weights;       // float; no data: not wanted
  index_t first_query;  // index of the token of q's first row
  index_t num_kv_heads;
  std::uint64_t first_position;
  plan_shape plan;
  position_data encoding;
  row_rotation query_rotation;  // none or to_position
  key_value_rows<Real> rows;
  const float* sink_logits;
  Real scale;                                  // of scores, log2(e) included
  Real soft_cap;                               // log2(e) included
  const position_kernels<Real>* one_position;  // null where queries are taken in tiles only
  const pair_kernels<Real>* pairs;             // null where none are taken
  // Whether keys and values are taken as pairs of bfloat16s, and queries and weights rounded to them.
  bool sinks_in_pairs;
  bool window_in_pairs;
  // Of all jobs of a call; set by job_list.
  index_t first_task;
  index_t first_head_set;

  index_t num_tokens() const { return first_query + q.tokens; }
  index_t head_dim() const { return q.dim; }
  index_t v_head_dim() const { return out.dim; }
  index_t group() const { return q.heads / num_kv_heads; }
  // Keys that the queries see together: no query sees more.
  index_t keys_seen() const {
    return sinks_seen(plan, num_tokens()).size() + window_seen(plan, first_query, num_tokens()).size();
  }
  bool in_pairs(key_kind kind) const { return is_sink(kind) ? sinks_in_pairs : window_in_pairs; }
  index_t keys_per_step(key_kind kind) const { return in_pairs(kind) ? pairs->keys_per_step : 1; }
  bool any_in_pairs() const { return sinks_in_pairs || window_in_pairs; }

  // Queries at so few positions are better read off the rows as they lie than in tiles that stay empty.
  bool by_position() const { return q.tokens <= most_tokens(); }
  index_t most_tokens() const {
    if (one_position == nullptr) return -1;
    // What would be copied, and so computed in numbers, is better taken in tiles where there are many.
    const index_t most = rows.window_as_stored ? one_position->most_queries : most_queries_by_position;
    return most_tokens_by_position(group(), most);
  }

  // Whether the kernels then read the rows where they lie, with nothing copied.
  bool as_stored(key_kind kind) const {
    return by_position() && (is_sink(kind) ? rows.sinks_as_stored : rows.window_as_stored);
  }
};

// The column of attention_options::weights that a query's key has.
constexpr index_t weight_column(const lambda_shape& shape, index_t query, index_t key) {
  return key < shape.num_sinks ? key : shape.num_sinks + key - shape.window_keys(query).first;
}

// The distance at which the bias of position 0 of a tile and key `key` is taken, and how it changes along lanes and keys.
struct bias_distance {
  index_t distance;
  int lane_step;
  int key_step;
};
inline bias_distance bias_distance_of(const plan_shape& plan, key_kind kind, index_t first_query, index_t key) {
  if (!is_far(kind)) return {first_query - key, 1, 1};
  if (plan.slots()) return {plan.shape.last_slot() - key, 0, 1};
  return {plan.limit(), 0, 0};
}

// The position that the second copy of a query is turned to: the limit, which meets R(0)k, or that of the last slot, which
// meets sinks that are turned to their own position.
template <class Real>
std::uint64_t far_query_position(const attention_job<Real>& job) {
  if (!job.plan.slots()) return static_cast<std::uint64_t>(job.plan.limit());
  return job.first_position + static_cast<std::uint64_t>(job.plan.shape.last_slot());
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
