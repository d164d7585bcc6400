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
#include <cstring>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// The tiles of `heads` query heads from first_head on, all of one KV head.
template <class Real>
class tile_driver {
 public:
  tile_driver(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
              const query_turner<Real>& turner, worker_scratch<Real>& scratch, index_t first_head, int tile_heads)
      : kernels_(kernels),
        job_(job),
        rows_(rows),
        turner_(turner),
        scratch_(scratch),
        first_head_(first_head),
        heads_(tile_heads) {
    tile_.head_dim = job.head_dim();
    tile_.v_head_dim = job.v_head_dim();
    tile_.width = kernels.lanes * kernels.tile_vectors;
    tile_.output = scratch.output;
    tile_.scores = scratch.scores;
    tile_.running_max = scratch.running_max;
    tile_.sum = scratch.sum;
    tile_.sum_of_block = scratch.sum_of_block;
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

  // Queries with the indices [first, last), those of a chunk.
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
    const index_t columns = (tile.count + kernels_.lanes - 1) / kernels_.lanes;
    pack_panels(tile, bands, columns);
    kernels_.begin_tile(tile_);
    for (int b = 0; b < bands.count; ++b)
      for_each_segment(bands.band[b], tile, job_.keys_per_step(bands.band[b].kind),
                       [&](const key_segment& segment) { add(tile, segment); });
    for (index_t c = 0; c < columns; ++c)
      for (int h = 0; h < heads_; ++h) unpack(tile, c, h);
  }

  // Of queries, as keys of a kind meet them: turned to their own positions or to the limit, as numbers or as pairs.
  bool meets_far_queries(key_kind kind) const { return is_far(kind) && job_.encoding.rotates(); }
  Real* panel_for(key_kind kind) const {
    return (job_.in_pairs(kind) ? scratch_.pair_queries : scratch_.queries)[meets_far_queries(kind) ? 1 : 0];
  }

  // The panels that the bands of a tile need, each once.
  void pack_panels(const query_tile& tile, const key_bands& bands, index_t columns) {
    for (int b = 0; b < bands.count; ++b) {
      const key_kind kind = bands.band[b].kind;
      bool packed = false;
      for (int before = 0; before < b; ++before)
        packed = packed || panel_for(bands.band[before].kind) == panel_for(kind);
      for (index_t c = 0; c < columns && !packed; ++c) pack(tile, c, kind);
    }
  }

  // The first lane of a column of positions for one of the heads.
  index_t lane_of(index_t column, int head) const { return (column * heads_ + head) * kernels_.lanes; }

  // Column `column` of a panel, all heads. Lanes without a query are zeros: whatever they compute stays finite and is
  // dropped.
  void pack(const query_tile& tile, index_t column, key_kind kind) {
    const index_t dim = job_.head_dim(), stride = round_up(dim, row_multiple);
    for (int h = 0; h < heads_; ++h) {
      for (index_t l = 0; l < kernels_.lanes; ++l) {
        const index_t p = column * kernels_.lanes + l;
        Real* const turned = scratch_.rows + l * stride;
        if (p < tile.count) {
          if (p + rows_ahead < tile.count) prefetch_query(tile.first + p + rows_ahead, h);
          turn_query(tile.first + p, h, kind, turned);
        } else {
          std::memset(turned, 0, static_cast<std::size_t>(dim) * sizeof(Real));
        }
        if (dim % 2 != 0) turned[dim] = 0;
      }
      const auto pack_rows = job_.in_pairs(kind) ? job_.pairs->pack : kernels_.pack;
      pack_rows(scratch_.rows, stride, dim, job_.scale, panel_for(kind) + lane_of(column, h), tile_.width);
    }
  }

  void prefetch_query(index_t query, int head) const {
    prefetch_row(job_.q.row(query - job_.first_query, first_head_ + head), job_.q.row_bytes());
  }

  void turn_query(index_t query, int head, key_kind kind, Real* turned) {
    const index_t token = query - job_.first_query;
    const Real* const row = read_query(kernels_, job_.q, token, first_head_ + head, scratch_.row);
    if (meets_far_queries(kind)) {
      turner_.turn_to_far_position(query, row, turned);
    } else {
      turner_.turn_to_own_position(query, row, turned);
    }
  }

  // A segment in as many runs as its rows lie in.
  void add(const query_tile& tile, const key_segment& segment) {
    const row_window<Real>& keys = rows_.keys(segment.kind);
    const row_window<Real>& values = rows_.values(segment.kind);
    tile_keys<Real> run;
    run.key_stride = keys.stride;
    run.value_stride = values.stride;
    run.queries = panel_for(segment.kind);
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
      run.missing = key % job_.keys_per_step(segment.kind);
      (job_.in_pairs(segment.kind) ? job_.pairs->add_keys : kernels_.add_keys)(tile_, run);
    }
  }

  // Column `column` of a tile, one head.
  void unpack(const query_tile& tile, index_t column, int head) {
    const index_t first_lane = lane_of(column, head);
    const index_t stride = round_up(tile_.v_head_dim, row_multiple);
    const index_t query_head = first_head_ + head;
    const Real* const sum = tile_.sum + first_lane;
    const Real* const max = tile_.running_max + first_lane;
    const index_t first = tile.first + column * kernels_.lanes - job_.first_query;
    const index_t count = min(kernels_.lanes, tile.count - column * kernels_.lanes);
    for (index_t l = 0; l < count; ++l) prefetch_row(job_.out.row(first + l, query_head), job_.out.row_bytes());
    for (index_t l = 0; l < kernels_.lanes; ++l)
      scratch_.scale[l] = normaliser(sum[l], max[l], sink_logit_of(job_, query_head));
    kernels_.unpack(tile_.output + first_lane, tile_.width, scratch_.scale, tile_.v_head_dim, scratch_.rows, stride);
    for (index_t l = 0; l < count; ++l) {
      write_tensor_row(kernels_, job_.out, first + l, query_head, scratch_.rows + l * stride);
      write_lse(job_, first + l, query_head, sum[l], max[l]);
    }
  }

  const kernel_table<Real>& kernels_;
  const attention_job<Real>& job_;
  const task_rows<Real>& rows_;
  const query_turner<Real>& turner_;
  worker_scratch<Real>& scratch_;
  index_t first_head_;
  int heads_;
  tile_state<Real> tile_;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
