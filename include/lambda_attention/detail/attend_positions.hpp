// A task of a few queries, for decoding and for drafts: rows are read as the cache stores them.
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

// `heads` query heads from first_head on, all of KV head kv_head; where they are the whole group, as many positions as leave it
// at what the kernels take together. Most take 4 queries at a time; a few rows go through all queries before the next, so that
// memory is read once. The keys of all parts come before the values of the first, so that memory is read strictly in order.
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
        sinks_as_stored_(job.as_stored(key_kind::sinks_near)),
        window_as_stored_(job.as_stored(key_kind::window_near)),
        kv_head_(kv_head),
        first_head_(first_head),
        heads_(heads),
        padded_dim_(round_up(job.head_dim(), row_multiple)),
        padded_v_dim_(round_up(job.v_head_dim(), row_multiple)) {}

  // Some parts of the keys of the queries [first, last), those of a chunk.
  void run(index_t first, index_t last, index_range parts) {
    // Partial results of positions lie side by side where these heads are the whole group.
    const index_t together = heads_ == job_.group() ? job_.one_position->most_queries / heads_ : 1;
    while (first < last) {
      const index_t end = job_.plan.tile_end(first, min(first + together, last));
      attend(first, end, parts);
      first = end;
    }
  }

 private:
  // The keys of these queries are numbered through all bands. A row of queries, scores or sums is that of a position and a
  // head: [position][head].
  void attend(index_t first, index_t last, index_range parts) {
    first_ = first;
    num_rows_ = (last - first) * heads_;
    const key_bands bands = job_.plan.bands(first, last);
    const index_range keys = keys_of(parts, bands);
    score_stride_ = round_up(keys.size(), row_multiple);
    for (index_t row = 0; row < num_rows_; ++row) pack(row, bands.any_far());
    const auto for_each_part = [&](auto&& visit) {
      for (index_t part = parts.first; part < parts.last; ++part) {
        const index_range keys_of_part = keys_of({part, part + 1}, bands);
        visit(keys_of_part, scratch_.scores + keys_of_part.first - keys.first, partial_row(part));
      }
    };
    for_each_part([&](index_range of_part, Real* scores, index_t) { score(bands, of_part, scores); });
    for_each_part([&](index_range of_part, Real* scores, index_t partial) { weigh(bands, of_part, scores, partial); });
  }

  index_t query_of(index_t row) const { return first_ + row / heads_; }
  index_t head_of(index_t row) const { return first_head_ + row % heads_; }

  index_range keys_of(index_range parts, const key_bands& bands) const {
    index_t num_keys = 0;
    for (int b = 0; b < bands.count; ++b) num_keys += bands.band[b].keys.size();
    const index_t keys_each = keys_per_part(num_keys, num_parts_);
    return {min(num_keys, parts.first * keys_each), min(num_keys, parts.last * keys_each)};
  }
  // The partial result of our first row.
  index_t partial_row(index_t part) const {
    return (part * job_.q.tokens + first_ - job_.first_query) * job_.group() + first_head_ - kv_head_ * job_.group();
  }

  // A query, turned to its own position, and to the far one where there is such a key: without a limit it may be one that no
  // row function knows.
  void pack(index_t row, bool any_far) {
    const index_t query = query_of(row);
    const Real* const numbers = read_query(kernels_, job_.q, query - job_.first_query, head_of(row), scratch_.row);
    Real* const own = scratch_.queries[0] + row * padded_dim_;
    turner_.turn_to_own_position(query, numbers, own);
    scale_and_pad(own);
    if (!any_far) return;
    Real* const far = scratch_.queries[1] + row * padded_dim_;
    turner_.turn_to_far_position(query, numbers, far);
    scale_and_pad(far);
  }
  void scale_and_pad(Real* query) const {
    for (index_t d = 0; d < job_.head_dim(); ++d) query[d] *= job_.scale;
    for (index_t d = job_.head_dim(); d < padded_dim_; ++d) query[d] = 0;
  }

  // Of rows that lie apart, so much is asked for in one go: little of L1.
  static constexpr index_t bytes_asked_for = 8192;

  // The run of rows that begins with `key`: as stored, or as they were copied where the kernels cannot read those.
  stored_rows rows_from(key_kind kind, index_t key, index_t most) const {
    const row_store<Real>& keys = job_.rows.keys[static_cast<int>(kind)];
    const row_store<Real>& values = is_sink(kind) ? job_.rows.sink_values : job_.rows.window_values;
    stored_rows run = {};
    if (!(is_sink(kind) ? sinks_as_stored_ : window_as_stored_)) {
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
    run.asked_for = keys.in_runs && !(keys.is_long(key_rows) && values.is_long(value_rows));
    if (run.asked_for) run.num_keys = min(run.num_keys, max(1, bytes_asked_for / (keys.dim * keys.number_bytes)));
    run.key_scales = key_rows.scales;
    run.value_scales = value_rows.scales;
    return run;
  }

  // Rows of consecutive keys of a band, of which the first is `key`, and `number` among all keys.
  struct row_piece {
    const key_band* band;
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
        return {&band, key, number, rows_from(band.kind, key, min(end, end_of_band) - number)};
      }
      first_of_band = end_of_band;
    }
    return {nullptr, 0, end, {}};
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

  int queries_at_once(index_t queries_left) const {
    const int most = job_.one_position->queries_at_once;
    return most > max_tile_vectors ? static_cast<int>(min(queries_left, most)) : heads_at_once(queries_left, most);
  }

  // Calls pass(rows, done, first, count) for a few rows of keys at a time, of which `done` of the piece came before, and for
  // every few rows of queries.
  template <class Pass>
  void for_each_pass(const stored_rows& piece, Pass&& pass) {
    // The last pass may be that of one query, which asks for nothing: the others have.
    index_t num_asking = 0;
    for (index_t row = 0; num_rows_ - row > 1; ++num_asking) row += queries_at_once(num_rows_ - row);
    const bool at_once = queries_at_once(num_rows_) == num_rows_;
    const index_t keys_per_pass = at_once ? piece.num_keys : 128;
    for (index_t done = 0; done < piece.num_keys; done += keys_per_pass) {
      const stored_rows rows = piece.part(done, keys_per_pass);
      for (index_t row = 0, number = 0; row < num_rows_; ++number) {
        const int count = queries_at_once(num_rows_ - row);
        stored_rows in_pass = rows.in_pass(number, max(1, num_asking));
        in_pass.read_once = num_rows_ == 1 && !rows.asked_for;
        pass(in_pass, done, row, count);
        row += count;
      }
    }
  }

  // A part at a time, for how many rows there are in a piece may change what kernels do with them.
  void score(const key_bands& bands, index_range keys, Real* scores_of_part) {
    const auto ask = [&](const stored_rows& rows) { ask_for_keys(rows); };
    for_each_piece(bands, keys, ask, [&](const row_piece& now) {
      const key_kind kind = now.band->kind;
      const Real* const queries = is_far(kind) ? scratch_.queries[1] : scratch_.queries[0];
      Real* const scores = scores_of_part + now.number - keys.first;
      for_each_pass(now.rows, [&](const stored_rows& rows, index_t rows_done, index_t row, int count) {
        job_.one_position->score_rows(queries + row * padded_dim_, count, padded_dim_, rows,
                                      scores + row * score_stride_ + rows_done, score_stride_);
      });
      for (index_t row = 0; row < num_rows_; ++row) {
        const bias_distance bias = bias_distance_of(job_.plan, kind, query_of(row), now.key);
        job_.one_position->adjust_scores(scores + row * score_stride_, now.rows.num_keys, job_.soft_cap,
                                         slope_of(job_, head_of(row)), bias_row_of(job_, head_of(row)),
                                         num_biases_of(job_), bias.distance, bias.key_step);
        const index_range seen = keys_seen(now, query_of(row));
        hide(seen, now.rows.num_keys, scores + row * score_stride_);
        if (job_.weights.data != nullptr) keep(now, row, seen, scores + row * score_stride_);
      }
    });
  }

  // Those keys of a piece, counted from its first, that a query sees in the piece's band. Others of the queries see the rest.
  static index_range keys_seen(const row_piece& piece, index_t query) {
    const index_t oldest = query - min(piece.band->farthest, query), newest = query - piece.band->nearest;
    return {min(piece.rows.num_keys, max(0, oldest - piece.key)),
            max(0, min(piece.rows.num_keys, newest + 1 - piece.key))};
  }
  static void hide(index_range seen, index_t num_keys, Real* scores) {
    for (index_t k = 0; k < seen.first; ++k) scores[k] = static_cast<Real>(hidden_score);
    for (index_t k = max(seen.first, seen.last); k < num_keys; ++k) scores[k] = static_cast<Real>(hidden_score);
  }

  // Scores in the place of weights, for join_parts() to turn into them.
  void keep(const row_piece& piece, index_t row, index_range seen, const Real* scores) const {
    const index_t query = query_of(row);
    float* const kept = reinterpret_cast<float*>(job_.weights.row(query - job_.first_query, head_of(row)));
    const index_t column = weight_column(job_.plan.shape, query, piece.key + seen.first);
    for (index_t k = seen.first; k < seen.last; ++k) kept[column + k - seen.first] = static_cast<float>(scores[k]);
  }

  // Scores of a part to weights, and the sum of values with these.
  void weigh(const key_bands& bands, index_range keys, Real* weights, index_t partial) {
    const bool in_pairs = job_.any_in_pairs() && num_rows_ >= job_.one_position->fewest_in_pairs;
    const auto softmax = in_pairs ? job_.one_position->softmax_in_pairs : job_.one_position->softmax;
    for (index_t row = 0; row < num_rows_; ++row)
      partials_.max(partial + row) = softmax(weights + row * score_stride_, keys.size(), &partials_.sum(partial + row));

    Real* const output = partials_.output(partial, padded_v_dim_);
    for (index_t i = 0; i < num_rows_ * padded_v_dim_; ++i) output[i] = 0;
    const auto ask = [&](const stored_rows& rows) { ask_for_values(rows); };
    for_each_piece(bands, keys, ask, [&](const row_piece& now) {
      for_each_pass(now.rows, [&](const stored_rows& rows, index_t rows_done, index_t row, int count) {
        job_.one_position->add_values(weights + row * score_stride_ + now.number - keys.first + rows_done,
                                      score_stride_, count, padded_v_dim_, rows, output + row * padded_v_dim_);
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
  bool sinks_as_stored_;
  bool window_as_stored_;
  index_t kv_head_;
  index_t first_head_;
  index_t heads_;
  index_t padded_dim_;
  index_t padded_v_dim_;
  index_t first_ = 0;  // of the queries at hand
  index_t num_rows_ = 0;
  index_t score_stride_ = 0;
};

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
