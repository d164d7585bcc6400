// A task in tiles of queries: plan -> pack -> kernel -> unpack.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/task_rows.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The tiles of `heads` query heads from first_head on, all of one KV head.
template <class Real>
class tile_driver {
 public:
  tile_driver(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
              worker_scratch<Real>& scratch, index_t first_head, int tile_heads)
      : kernels_(kernels), job_(job), rows_(rows), scratch_(scratch), first_head_(first_head), heads_(tile_heads) {
    own_turner_ = row_turner<Real>(kernels, job.encoding, job.head_dim(), scratch.angles);
    far_turner_ = row_turner<Real>(kernels, job.encoding, job.head_dim(), scratch.far_angles);
    far_turner_.move_to(far_query_position(job));
    tile_.head_dim = job.head_dim();
    tile_.v_head_dim = job.v_head_dim();
    tile_.width = kernels.lanes * kernels.tile_vectors;
    tile_.queries[0] = scratch.queries[0];
    tile_.queries[1] = job.encoding.rotates() ? scratch.queries[1] : scratch.queries[0];
    tile_.output = scratch.output;
    tile_.scores = scratch.scores;
    tile_.running_max = scratch.running_max;
    tile_.sum = scratch.sum;
    tile_.position = scratch.position;
    tile_.num_distances = num_biases_of(job);
    tile_.soft_cap = job.soft_cap;
    tile_.has_slope = job.encoding.slopes != nullptr;
    for (int v = 0; v < kernels.tile_vectors; ++v) {
      tile_.slope[v] = slope_of(job, first_head + v % tile_heads);
      tile_.bias_row[v] = bias_row_of(job, first_head + v % tile_heads);
      for (index_t l = 0; l < kernels.lanes; ++l)
        scratch.position[v * kernels.lanes + l] = static_cast<Real>(v / tile_heads * kernels.lanes + l);
    }
  }

  // Queries with the indices [first, last).
  void run(index_t first, index_t last) {
    const index_t span = kernels_.tile_vectors / heads_ * kernels_.lanes;
    while (first < last) {
      const index_t end = job_.plan.tile_end(first, min(first + span, last));
      run_tile({first, end - first, kernels_.lanes});
      first = end;
    }
  }

 private:
  void run_tile(const query_tile& tile) {
    const key_bands bands = job_.plan.bands(tile.first, tile.first + tile.count);
    pack(tile, tile_.queries[0], own_turner_, turns::each_to_its_own_position);
    if (needs_far_queries(bands)) pack(tile, tile_.queries[1], far_turner_, turns::all_to_one);
    kernels_.begin_tile(tile_);
    for (int b = 0; b < bands.count; ++b)
      for_each_segment(bands.band[b], tile, [&](const key_segment& segment) { add(tile, segment); });
    for (index_t p = 0; p < tile.count; ++p)
      for (int h = 0; h < heads_; ++h) unpack(tile, p, h);
  }

  bool needs_far_queries(const key_bands& bands) const {
    bool needed = false;
    for (int b = 0; b < bands.count; ++b) needed = needed || is_far(bands.band[b].kind);
    return needed && job_.encoding.rotates();
  }

  index_t lane_of(index_t position, int head) const {
    return (position / kernels_.lanes * heads_ + head) * kernels_.lanes + position % kernels_.lanes;
  }

  enum class turns { each_to_its_own_position, all_to_one };

  // Lanes without a query, in a vector that has some, are zeros: whatever they compute stays finite and is dropped.
  void pack(const query_tile& tile, Real* panel, row_turner<Real>& turner, turns turned_to) {
    const index_t row_bytes = job_.head_dim() * job_.q.element_size;
    for (index_t p = 0; p < tile.count; ++p) {
      const index_t query = tile.first + p;
      if (turned_to == turns::each_to_its_own_position)
        turner.move_to(job_.first_position + static_cast<std::uint64_t>(query));
      for (int h = 0; h < heads_; ++h) {
        if (p + rows_ahead < tile.count)
          prefetch_row(job_.q.row(query + rows_ahead - job_.first_query, first_head_ + h), row_bytes);
        read_query(kernels_, job_, query - job_.first_query, first_head_ + h, scratch_.row);
        turner.turn(scratch_.row, scratch_.turned_row);
        kernels_.pack_lane(scratch_.turned_row, tile_.head_dim, panel, tile_.width, lane_of(p, h));
      }
    }
    if (tile.count % kernels_.lanes == 0) return;
    for (index_t d = 0; d < tile_.head_dim; ++d) scratch_.row[d] = 0;
    for (index_t p = tile.count; p < round_up(tile.count, kernels_.lanes); ++p)
      for (int h = 0; h < heads_; ++h)
        kernels_.pack_lane(scratch_.row, tile_.head_dim, panel, tile_.width, lane_of(p, h));
  }

  // A segment in as many runs as its rows lie in.
  void add(const query_tile& tile, const key_segment& segment) {
    const row_window<Real>& keys = rows_.keys[static_cast<int>(segment.kind)];
    const row_window<Real>& values = rows_.values(segment.kind);
    tile_keys<Real> run;
    run.key_stride = keys.stride;
    run.value_stride = values.stride;
    run.query_panel = is_far(segment.kind) ? 1 : 0;
    run.first_vector = segment.first_column * heads_;
    run.num_vectors = segment.num_columns * heads_;
    run.masked = segment.masked;
    for (index_t done = 0; done < segment.num_keys; done += run.num_keys) {
      const index_t key = segment.first_key + done;
      run.num_keys = min(segment.num_keys - done, min(keys.run_length(key), values.run_length(key)));
      run.keys = keys.row(key);
      run.values = values.row(key);
      run.lowest = segment.lowest + done;
      run.highest = segment.highest + done;
      const bias_distance bias = bias_distance_of(job_.plan, segment.kind, tile.first, key);
      run.distance = bias.distance;
      run.lane_step = bias.lane_step;
      run.key_step = bias.key_step;
      kernels_.add_keys(tile_, run);
    }
  }

  void unpack(const query_tile& tile, index_t position, int head) {
    const index_t lane = lane_of(position, head);
    const index_t token = tile.first + position - job_.first_query;
    const index_t query_head = first_head_ + head;
    const Real sum = tile_.sum[lane], max = tile_.running_max[lane];
    const Real scale = normaliser(sum, max, sink_logit_of(job_, query_head));
    kernels_.unpack_lane(tile_.output, tile_.width, lane, scale, tile_.v_head_dim, scratch_.row);
    write_output(kernels_, job_, token, query_head, scratch_.row);
    write_lse(job_, token, query_head, sum, max);
  }

  const kernel_table<Real>& kernels_;
  const attention_job<Real>& job_;
  const task_rows<Real>& rows_;
  worker_scratch<Real>& scratch_;
  index_t first_head_;
  int heads_;
  row_turner<Real> own_turner_;
  row_turner<Real> far_turner_;
  tile_state<Real> tile_;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
