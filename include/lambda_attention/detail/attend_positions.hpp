// A task one position at a time, for decoding: rows are read as the cache stores them.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/key_parts.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/scratch.hpp>
#include <lambda_attention/detail/task_rows.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// `heads` query heads from first_head on, all of KV head kv_head, at most most_heads_by_position. Kernels take 4 of them at
// a time; a few rows go through all heads before the next, so that memory is read once. The keys of all parts come before
// the values of the first, so that memory is read strictly in order.
template <class Real>
class position_driver {
 public:
  position_driver(const kernel_table<Real>& kernels, const attention_job<Real>& job, const task_rows<Real>& rows,
                  const query_turner<Real>& turner, worker_scratch<Real>& scratch,
                  const partial_results<Real>& partials, index_t kv_head, index_t first_head, index_t heads)
      : kernels_(kernels),
        job_(job),
        rows_(rows),
        turner_(turner),
        scratch_(scratch),
        partials_(partials),
        num_parts_(num_parts(job)),
        kv_head_(kv_head),
        first_head_(first_head),
        heads_(heads),
        padded_dim_(round_up(job.head_dim(), row_multiple)),
        padded_v_dim_(round_up(job.v_head_dim(), row_multiple)) {}

  // Some parts of the keys of the queries [first, last), those of a chunk.
  void run(index_t first, index_t last, index_range parts) {
    for (index_t query = first; query < last; ++query) attend(query, parts);
  }

 private:
  // A query's keys are numbered through all bands.
  void attend(index_t query, index_range parts) {
    const key_bands bands = job_.plan.bands(query, query + 1);
    const index_range keys = keys_of(parts, bands);
    score_stride_ = round_up(keys.size(), row_multiple);
    pack(query);
    score(query, bands, keys);
    for (index_t part = parts.first; part < parts.last; ++part) {
      const index_range keys_of_part = keys_of({part, part + 1}, bands);
      weigh(bands, keys_of_part, scratch_.scores + keys_of_part.first - keys.first, partial_row(query, part));
    }
  }

  index_range keys_of(index_range parts, const key_bands& bands) const {
    index_t num_keys = 0;
    for (int b = 0; b < bands.count; ++b) num_keys += bands.band[b].keys.size();
    const index_t keys_each = keys_per_part(num_keys);
    return {min(num_keys, parts.first * keys_each), min(num_keys, parts.last * keys_each)};
  }
  // The partial result of the first of our heads.
  index_t partial_row(index_t query, index_t part) const {
    return ((query - job_.first_query) * num_parts_ + part) * job_.group() + first_head_ - kv_head_ * job_.group();
  }

  // Rows of all heads, turned to the query's own position and to the far one, padded with zeros.
  void pack(index_t query) {
    for (index_t h = 0; h < heads_; ++h) {
      Real* const own = scratch_.queries[0] + h * padded_dim_;
      Real* const far = scratch_.queries[1] + h * padded_dim_;
      const Real* const row = read_query(kernels_, job_, query - job_.first_query, first_head_ + h, scratch_.row);
      turner_.turn_to_own_position(query, row, own);
      turner_.turn_to_far_position(query, row, far);
      for (index_t d = 0; d < job_.head_dim(); ++d) {
        own[d] *= job_.scale;
        far[d] *= job_.scale;
      }
      for (index_t d = job_.head_dim(); d < padded_dim_; ++d) own[d] = far[d] = 0;
    }
  }

  // Of rows that lie apart, so many are asked for in one go: what they take of L1 is little.
  static constexpr index_t rows_asked_for = 32;

  // The run of rows that begins with `key`: as stored, or as they were copied where the kernels cannot read those.
  stored_rows rows_from(key_kind kind, index_t key, index_t most) const {
    const row_store<Real>& keys = job_.rows.keys[static_cast<int>(kind)];
    const row_store<Real>& values = is_sink(kind) ? job_.rows.sink_values : job_.rows.window_values;
    stored_rows run = {};
    if (!job_.as_stored(kind)) {
      const row_window<Real>& key_window = rows_.keys(kind);
      const row_window<Real>& value_window = rows_.values(kind);
      run.format = native_format<Real>;
      run.keys = reinterpret_cast<const unsigned char*>(key_window.row(key));
      run.values = reinterpret_cast<const unsigned char*>(value_window.row(key));
      run.key_row_bytes = key_window.stride * static_cast<index_t>(sizeof(Real));
      run.value_row_bytes = value_window.stride * static_cast<index_t>(sizeof(Real));
      run.num_keys = min(most, min(key_window.run_length(key), value_window.run_length(key)));
      return run;
    }
    const row_run key_rows = keys.run_from(kv_head_, key), value_rows = values.run_from(kv_head_, key);
    run.format = keys.format;
    run.keys = key_rows.first_row;
    run.values = value_rows.first_row;
    run.key_row_bytes = key_rows.row_bytes;
    run.value_row_bytes = value_rows.row_bytes;
    run.num_keys = min(most, min(key_rows.num_rows, value_rows.num_rows));
    run.asked_for = keys.num_runs > 0 && !(keys.is_long(key_rows) && values.is_long(value_rows));
    if (run.asked_for) run.num_keys = min(run.num_keys, rows_asked_for);
    run.key_scales = key_rows.scales;
    run.value_scales = value_rows.scales;
    return run;
  }

  // Rows of consecutive keys of a band, of which the first is `key`, and `number` among the query's.
  struct row_piece {
    key_kind kind;
    index_t key;
    index_t number;
    stored_rows rows;
  };

  // The piece that begins with the key that has this number, up to `end`; none at the end.
  row_piece piece_at(const key_bands& bands, index_t number, index_t end) const {
    index_t first_of_band = 0;
    for (int b = 0; b < bands.count; ++b) {
      const key_band& band = bands.band[b];
      const index_t end_of_band = first_of_band + band.keys.size();
      if (number < min(end, end_of_band)) {
        const index_t key = band.keys.first + number - first_of_band;
        return {band.kind, key, number, rows_from(band.kind, key, min(end, end_of_band) - number)};
      }
      first_of_band = end_of_band;
    }
    return {key_kind::window_near, 0, end, {}};
  }

  // Calls visit(piece) for the keys with the numbers given, a piece at a time. Rows that lie apart are asked for, by
  // ask(rows), while those before them are read.
  template <class Ask, class Visit>
  void for_each_piece(const key_bands& bands, index_range keys, Ask&& ask, Visit&& visit) const {
    for (row_piece now = piece_at(bands, keys.first, keys.last); now.number < keys.last;) {
      const row_piece next = piece_at(bands, now.number + now.rows.num_keys, keys.last);
      if (next.rows.asked_for) ask(next.rows);
      visit(now);
      now = next;
    }
  }
  void ask_for_keys(const stored_rows& rows) const {
    const index_t bytes = job_.rows.keys[0].dim * job_.rows.keys[0].number_bytes;
    for (index_t r = 0; r < rows.num_keys; ++r) prefetch_row(rows.keys + r * rows.key_row_bytes, bytes);
  }
  void ask_for_values(const stored_rows& rows) const {
    const index_t bytes = job_.rows.window_values.dim * job_.rows.window_values.number_bytes;
    for (index_t r = 0; r < rows.num_keys; ++r) prefetch_row(rows.values + r * rows.value_row_bytes, bytes);
  }

  // Calls pass(rows, done, head, heads) for a few rows at a time, of which `done` of the run came before, and for every few
  // heads.
  template <class Pass>
  void for_each_pass(const stored_rows& run, Pass&& pass) {
    // The last pass may be that of one head, which asks for nothing.
    index_t num_asking = 0;
    for (index_t head = 0; heads_ - head > 1; ++num_asking) head += heads_at_once(heads_ - head, max_tile_vectors);
    const bool at_once = heads_at_once(heads_, max_tile_vectors) == heads_;
    const index_t rows_per_pass = at_once ? run.num_keys : 128;
    for (index_t done = 0; done < run.num_keys; done += rows_per_pass) {
      const stored_rows rows = run.part(done, rows_per_pass);
      for (index_t head = 0, number = 0; head < heads_; ++number) {
        const int heads = heads_at_once(heads_ - head, max_tile_vectors);
        pass(rows.in_pass(number, max(1, num_asking)), done, head, heads);
        head += heads;
      }
    }
  }

  void score(index_t query, const key_bands& bands, index_range keys) {
    const auto ask = [&](const stored_rows& rows) { ask_for_keys(rows); };
    for_each_piece(bands, keys, ask, [&](const row_piece& now) {
      const Real* const queries = is_far(now.kind) ? scratch_.queries[1] : scratch_.queries[0];
      Real* const scores = scratch_.scores + now.number - keys.first;
      for_each_pass(now.rows, [&](const stored_rows& rows, index_t rows_done, index_t head, int heads) {
        job_.one_position->score_rows(queries + head * padded_dim_, heads, padded_dim_, rows,
                                      scores + head * score_stride_ + rows_done, score_stride_);
      });
      const bias_distance bias = bias_distance_of(job_.plan, now.kind, query, now.key);
      for (index_t h = 0; h < heads_; ++h)
        job_.one_position->adjust_scores(scores + h * score_stride_, now.rows.num_keys, job_.soft_cap,
                                         slope_of(job_, first_head_ + h), bias_row_of(job_, first_head_ + h),
                                         num_biases_of(job_), bias.distance, bias.key_step);
    });
  }

  // Scores of a part to weights, and the sum of values with these.
  void weigh(const key_bands& bands, index_range keys, Real* weights, index_t partial) {
    const auto softmax =
        job_.window_in_pairs && heads_ > 1 ? job_.one_position->softmax_in_pairs : job_.one_position->softmax;
    for (index_t h = 0; h < heads_; ++h)
      partials_.max(partial + h) = softmax(weights + h * score_stride_, keys.size(), &partials_.sum(partial + h));

    Real* const output = partials_.output(partial, padded_v_dim_);
    for (index_t i = 0; i < heads_ * padded_v_dim_; ++i) output[i] = 0;
    const auto ask = [&](const stored_rows& rows) { ask_for_values(rows); };
    for_each_piece(bands, keys, ask, [&](const row_piece& now) {
      for_each_pass(now.rows, [&](const stored_rows& rows, index_t rows_done, index_t head, int heads) {
        job_.one_position->add_values(weights + head * score_stride_ + now.number - keys.first + rows_done,
                                      score_stride_, heads, padded_v_dim_, rows, output + head * padded_v_dim_);
      });
    });
  }

  const kernel_table<Real>& kernels_;
  const attention_job<Real>& job_;
  const task_rows<Real>& rows_;
  const query_turner<Real>& turner_;
  worker_scratch<Real>& scratch_;
  const partial_results<Real>& partials_;
  index_t num_parts_;
  index_t kv_head_;
  index_t first_head_;
  index_t heads_;
  index_t padded_dim_;
  index_t padded_v_dim_;
  index_t score_stride_ = 0;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
