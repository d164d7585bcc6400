// The memory that a worker works in, cut from one block.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/buffer.hpp>
#include <lambda_attention/detail/plan.hpp>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Hands out pieces of a block of memory; without one, only counts how much they would take.
class scratch_arena {
 public:
  explicit scratch_arena(unsigned char* memory) : memory_(memory) {}

  template <class T>
  T* take(index_t count) {
    T* const piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ = round_up(used_ + count * static_cast<index_t>(sizeof(T)), buffer_alignment);
    return piece;
  }
  index_t used() const { return used_; }

 private:
  unsigned char* memory_;
  index_t used_ = 0;
};

// Queries that are taken together: the rows that they see are copied, then their tiles run. A tile is a part of a chunk, so
// this is a multiple of every tile's positions.
inline constexpr index_t queries_per_chunk = 64;

// What one worker needs to hold, over all jobs of a call, and what the workers at a KV head's parts need together.
struct scratch_sizes {
  index_t angles = 0;      // of one position
  index_t far_angles = 0;  // of all positions that far queries are turned to
  index_t head_dim = 0;
  index_t v_head_dim = 0;
  index_t pair_words = 0;  // of a query
  index_t key_elements[num_key_kinds] = {};
  index_t sink_value_elements = 0;
  index_t window_value_elements = 0;
  index_t width = 0;
  index_t scores = 0;
  index_t partial_rows = 0;  // of all queries and heads of a KV head, read off the rows as they lie
};

template <class Real>
struct worker_scratch {
  Real* angles;  // of the positions of a chunk
  Real* far_angles;
  Real* zero_angles;  // of position 0
  Real* row;
  Real* rows;   // of one column of a tile, one head
  Real* scale;  // of each lane of a vector
  Real* keys[num_key_kinds];
  Real* sink_values;
  Real* window_values;
  Real* queries[2];
  Real* pair_queries[2];
  Real* output;
  Real* scores;
  Real* running_max;
  Real* sum;
  Real* sum_of_block;
  Real* position;

  worker_scratch(scratch_arena& arena, const scratch_sizes& sizes) {
    angles = arena.take<Real>(sizes.angles * queries_per_chunk);
    far_angles = arena.take<Real>(sizes.far_angles);
    zero_angles = arena.take<Real>(sizes.angles);
    row = arena.take<Real>(max_head_dim);
    rows = arena.take<Real>(max(sizes.head_dim, sizes.v_head_dim) * sizes.width);
    scale = arena.take<Real>(sizes.width);
    for (int kind = 0; kind < num_key_kinds; ++kind) keys[kind] = arena.take<Real>(sizes.key_elements[kind]);
    sink_values = arena.take<Real>(sizes.sink_value_elements);
    window_values = arena.take<Real>(sizes.window_value_elements);
    for (Real*& panel : queries) panel = arena.take<Real>(sizes.head_dim * sizes.width);
    for (Real*& panel : pair_queries) panel = arena.take<Real>(sizes.pair_words * sizes.width);
    output = arena.take<Real>(sizes.v_head_dim * sizes.width);
    scores = arena.take<Real>(sizes.scores);
    running_max = arena.take<Real>(sizes.width);
    sum = arena.take<Real>(sizes.width);
    sum_of_block = arena.take<Real>(sizes.width);
    position = arena.take<Real>(sizes.width);
  }
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
