// The keys and values that a task sees, where a kernel can read them, and the scratch that takes.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/job.hpp>
#include <lambda_attention/detail/kernels.hpp>
#include <lambda_attention/detail/key_parts.hpp>
#include <lambda_attention/detail/plan.hpp>
#include <lambda_attention/detail/query_rows.hpp>
#include <lambda_attention/detail/row_store.hpp>
#include <lambda_attention/detail/row_turner.hpp>
#include <lambda_attention/detail/scratch.hpp>

#include <cstdint>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// Rows that a ring must hold of what a job's queries see of one kind: all of them, or those that the queries of a chunk
// see, at `span` + 1 distances each.
constexpr index_t ring_rows(index_range seen, index_t span) {
  return max(0, min(seen.size(), saturating_add(span, queries_per_chunk)));
}
// The same in whole steps, the first of which may begin before the first key.
constexpr index_t in_steps(index_t num_keys, index_t keys_per_step) {
  return num_keys == 0 ? 0 : round_up(num_keys + keys_per_step - 1, keys_per_step);
}
template <class Real>
index_t key_ring_rows(const attention_job<Real>& job, key_kind kind) {
  const key_band band = job.plan.band(kind, job.first_query, job.num_tokens());
  return in_steps(ring_rows(band.keys, band.farthest - band.nearest), job.keys_per_step(kind));
}
// Rows of values, which two keys share in pairs.
template <class Real>
index_t window_value_ring_rows(const attention_job<Real>& job) {
  const index_range seen = window_seen(job.plan, job.first_query, job.num_tokens());
  const index_t num_keys = ring_rows(seen, max(0, job.plan.shape.window - 1));
  return in_steps(num_keys, job.keys_per_step(key_kind::window_near)) / (job.window_in_pairs ? 2 : 1);
}
template <class Real>
index_t sink_value_ring_rows(const attention_job<Real>& job) {
  const index_t num_keys = sinks_seen(job.plan, job.num_tokens()).size();
  return in_steps(num_keys, job.keys_per_step(key_kind::sinks_near)) / (job.sinks_in_pairs ? 2 : 1);
}

// Words from one row of a ring to the next. Kernels go through the rows of a block column by column: where rows lie a
// multiple of 1 KiB apart, the block's columns fall into a few sets of the cache and push each other out.
template <class Real>
constexpr index_t ring_stride(index_t num_words) {
  constexpr index_t word = static_cast<index_t>(sizeof(Real)), crowded = 1024 / word, cache_line = 64 / word;
  const index_t padded = round_up(num_words, row_multiple);
  return padded % crowded == 0 ? padded + cache_line : padded;
}

// Words of a row of keys.
constexpr index_t words_of_keys(bool in_pairs, index_t dim) { return in_pairs ? divide_up(dim, 2) : dim; }

// Where a step is more than a pair, rows are read that may not be there.
template <class Real>
bool keys_in_place(const attention_job<Real>& job, key_kind kind) {
  const bool in_pairs = job.in_pairs(kind);
  return job.keys_per_step(kind) <= 2 &&
         readable_in_place(job.rows.keys[static_cast<int>(kind)], job.rows.wanted[static_cast<int>(kind)], in_pairs);
}
// Values of pairs are woven into one another, and so copied.
template <class Real>
bool values_in_place(bool in_pairs, const row_store<Real>& values) {
  return !in_pairs && readable_in_place(values, row_rotation::none);
}

// The rows of one KV head that the queries of a chunk see, read where they lie if a kernel can, or else copied to rings in
// scratch as the queries advance, so that each is turned, widened or gathered once; none, where the job's rows are taken as
// they are stored:
//
//     keys    ... forgotten | held since earlier chunks | copied for this chunk | ...
template <class Real>
class task_rows {
 public:
  // `place`: of the head among those of the task.
  task_rows(const kernel_table<Real>& kernels, const attention_job<Real>& job, index_t kv_head, index_t place,
            row_turner<Real>& turner, worker_scratch<Real>& scratch)
      : kernels_(kernels),
        job_(job),
        kv_head_(kv_head),
        turner_(turner),
        zero_turner_(kernels, job.encoding, job.head_dim(), scratch.zero_angles),
        row_(scratch.row),
        turned_(scratch.rows) {
    const key_value_rows<Real>& rows = job.rows;
    for (int k = 0; k < num_key_kinds; ++k) keys_[k] = keys_on(static_cast<key_kind>(k), scratch.keys[k], place);
    if (!job.as_stored(key_kind::sinks_near))
      sink_values_ =
          values_on(rows.sink_values, job.sinks_in_pairs, scratch.sink_values, place, sink_value_ring_rows(job));
    if (!job.as_stored(key_kind::window_near))
      window_values_ =
          values_on(rows.window_values, job.window_in_pairs, scratch.window_values, place, window_value_ring_rows(job));
  }

  // Makes what the queries [first, last) see readable, where what [before, first) see, if there are any, is.
  void advance(index_t before, index_t first, index_t last) {
    for (int k = 0; k < num_key_kinds; ++k) {
      const key_kind kind = static_cast<key_kind>(k);
      const index_range held = before < first ? job_.plan.band(kind, before, first).keys : index_range{0, 0};
      extend_keys(kind, held, job_.plan.band(kind, first, last).keys, first);
    }
    const index_range sinks_held = before < first ? sinks_seen(job_.plan, first) : index_range{0, 0};
    const index_range window_held = before < first ? window_seen(job_.plan, before, first) : index_range{0, 0};
    extend_values(sink_values_, job_.rows.sink_values, sinks_held, sinks_seen(job_.plan, last));
    extend_values(window_values_, job_.rows.window_values, window_held, window_seen(job_.plan, first, last));
  }

  const row_window<Real>& keys(key_kind kind) const { return keys_[static_cast<int>(kind)]; }
  const row_window<Real>& values(key_kind kind) const { return is_sink(kind) ? sink_values_ : window_values_; }

 private:
  row_window<Real> keys_on(key_kind kind, Real* rings, index_t place) const {
    const row_store<Real>& store = job_.rows.keys[static_cast<int>(kind)];
    const bool in_pairs = job_.in_pairs(kind);
    if (job_.as_stored(kind)) return {};
    if (keys_in_place(job_, kind)) return window_in_place(store);
    const index_t num_rows = key_ring_rows(job_, kind);
    const index_t stride = ring_stride<Real>(words_of_keys(in_pairs, store.dim));
    Real* const ring = rings + place * num_rows * stride;
    return {ring, ring, stride, max(1, num_rows), false};
  }
  row_window<Real> values_on(const row_store<Real>& store, bool in_pairs, Real* rings, index_t place,
                             index_t num_rows) const {
    if (values_in_place(in_pairs, store)) return window_in_place(store);
    const index_t stride = ring_stride<Real>(store.dim);
    Real* const ring = rings + place * num_rows * stride;
    return {ring, ring, stride, max(1, num_rows) * (in_pairs ? 2 : 1), in_pairs};
  }
  row_window<Real> window_in_place(const row_store<Real>& store) const {
    const Real* const rows = reinterpret_cast<const Real*>(store.row(kv_head_, 0));
    return {rows, nullptr, store.row_bytes / static_cast<index_t>(sizeof(Real)), store.capacity, false};
  }

  // Copies the keys of `seen` that are not held, a chunk of a run at a time; the last chunk is that of the queries, which are
  // turned by the same angles unless a run ends in it.
  void extend_keys(key_kind kind, index_range held, index_range seen, index_t first_query) {
    const row_window<Real>& window = keys(kind);
    const row_store<Real>& store = job_.rows.keys[static_cast<int>(kind)];
    const row_rotation wanted = job_.rows.wanted[static_cast<int>(kind)];
    if (window.ring == nullptr) return;
    for (index_t key = max(held.last, seen.first); key < seen.last;) {
      const row_run run = store.run_from(kv_head_, key);
      const index_t end_of_run = saturating_add(key, run.num_rows);
      const index_t end_of_chunk = key < first_query ? min(first_query, key + queries_per_chunk) : seen.last;
      const index_t first = key, end = min(seen.last, min(end_of_run, end_of_chunk));
      const row_treatment treatment = treatment_of(run.rotation, wanted);
      prepare(treatment, first, end - first);
      for_each_row(window, store, key, end, [&](index_t j, const unsigned char* source, float scale, Real* copy) {
        Real* const turned = job_.in_pairs(kind) ? turned_ : copy;
        turn_key(store, treatment, source, scale, place_of(treatment, j - first, end - first), turned);
        if (job_.in_pairs(kind)) {
          if (store.dim % 2 != 0) turned[store.dim] = 0;
          job_.pairs->write_keys(turned, store.dim, copy);
        } else {
          end_in_zeros(store.dim, window.stride, copy);
        }
      });
      key = end;
    }
  }

  // The angles for `count` keys from `first` on.
  void prepare(row_treatment treatment, index_t first, index_t count) {
    const std::uint64_t position = job_.first_position + static_cast<std::uint64_t>(first);
    if (treatment == row_treatment::turn_to_own_position) turner_.move_to(position, count);
    if (treatment == row_treatment::turn_on_to_own_position) turner_.move_on_by(position, count);
    if (treatment == row_treatment::turn_back_to_zero)
      turner_.move_on_by(1 - position - static_cast<std::uint64_t>(count), count);
    if (treatment == row_treatment::turn_to_zero) zero_turner_.move_to(0);
  }
  // The turner's position for key `i` of those: it counts upwards, and back is less the later the key.
  static index_t place_of(row_treatment treatment, index_t i, index_t count) {
    return treatment == row_treatment::turn_back_to_zero ? count - 1 - i : i;
  }

  // A key's row, turned to position `position` of the turner if that is its treatment.
  void turn_key(const row_store<Real>& store, row_treatment treatment, const unsigned char* source, float scale,
                index_t position, Real* turned) {
    if (treatment == row_treatment::as_stored) {
      store.read(kernels_, source, scale, turned);
    } else if (treatment == row_treatment::turn_to_zero) {
      zero_turner_.turn(store.numbers(kernels_, source, scale, row_), turned);
    } else {
      turner_.turn(store.numbers(kernels_, source, scale, row_), turned, position);
    }
  }

  void extend_values(const row_window<Real>& window, const row_store<Real>& store, index_range held, index_range seen) {
    if (window.ring == nullptr) return;
    const index_t first = max(held.last, seen.first);
    for_each_row(window, store, first, seen.last, [&](index_t j, const unsigned char* source, float scale, Real* copy) {
      if (window.shared_by_two) {
        job_.pairs->join_values(source, store.dim, j % 2 != 0, copy);
      } else {
        store.read(kernels_, source, scale, copy);
        end_in_zeros(store.dim, window.stride, copy);
      }
    });
  }

  // A row of numbers.
  static void end_in_zeros(index_t dim, index_t stride, Real* copy) {
    for (index_t d = dim; d < stride; ++d) copy[d] = 0;
  }

  // Calls visit(key, its row in the store, its scale, its row in the ring) for the keys [first, last).
  template <class Visit>
  void for_each_row(const row_window<Real>& window, const row_store<Real>& store, index_t first, index_t last,
                    Visit&& visit) {
    while (first < last) {
      const row_run run = store.run_from(kv_head_, first);
      const index_t count = min(last - first, min(run.num_rows, window.run_length(first)));
      const index_t place = first % window.capacity;
      const unsigned char* source = run.first_row;
      for (index_t i = 0; i < count; ++i, source += run.row_bytes) {
        if (i + rows_ahead < count) prefetch_row(source + rows_ahead * run.row_bytes, store.bytes_read(run));
        visit(first + i, source, run.scales == nullptr ? 1.0f : run.scales[i],
              window.ring + window.offset_at(place + i));
      }
      first += count;
    }
  }

  const kernel_table<Real>& kernels_;
  const attention_job<Real>& job_;
  index_t kv_head_;
  row_turner<Real>& turner_;
  row_turner<Real> zero_turner_;
  Real* row_;
  Real* turned_;
  row_window<Real> keys_[num_key_kinds];
  row_window<Real> sink_values_;
  row_window<Real> window_values_;
};

// Elements of the rings of one head.
template <class Real>
scratch_sizes row_sizes(const attention_job<Real>& job) {
  const key_value_rows<Real>& rows = job.rows;
  const index_t value_stride = ring_stride<Real>(job.v_head_dim());
  scratch_sizes sizes;
  for (int k = 0; k < num_key_kinds; ++k) {
    const key_kind kind = static_cast<key_kind>(k);
    if (!job.as_stored(kind) && !keys_in_place(job, kind))
      sizes.key_elements[k] =
          key_ring_rows(job, kind) * ring_stride<Real>(words_of_keys(job.in_pairs(kind), job.head_dim()));
  }
  if (!job.as_stored(key_kind::sinks_near) && !values_in_place(job.sinks_in_pairs, rows.sink_values))
    sizes.sink_value_elements = sink_value_ring_rows(job) * value_stride;
  if (!job.as_stored(key_kind::window_near) && !values_in_place(job.window_in_pairs, rows.window_values))
    sizes.window_value_elements = window_value_ring_rows(job) * value_stride;
  return sizes;
}

// Of so many queries of a KV head or more are tasks in tiles: copying the window anew costs as much as some 50.
inline constexpr index_t fewest_queries_per_task = 512;

// KV heads that a task takes through its chunks together. Where the rows of a token's heads share a page of memory, a page
// is then looked up once for all of them, not once for each; a lookup costs about what four queries' copies do. Their rings
// should stay in a core's share of the cache. A kv_cache keeps the rows of a head together, and where rows are read as
// they lie each head has partial results of its own. Nor are heads taken together where that would leave workers idle.
template <class Real>
index_t heads_per_task(const attention_job<Real>& job, index_t num_workers) {
  constexpr index_t page = 4096, most_bytes = 6 << 20;
  const bool of_a_cache = job.one_position != nullptr && !job.rows.window_values.in_runs;
  if (of_a_cache || job.by_position() || job.rows.keys[static_cast<int>(key_kind::window_near)].head_bytes >= page)
    return 1;
  const scratch_sizes sizes = row_sizes(job);
  index_t elements = sizes.sink_value_elements + sizes.window_value_elements;
  for (const index_t key_elements : sizes.key_elements) elements += key_elements;
  const index_t most = max(1, most_bytes / (max(1, elements) * static_cast<index_t>(sizeof(Real))));
  const index_t busy = divide_up(num_workers, max(1, divide_up(job.q.tokens, fewest_queries_per_task)));
  const index_t num_sets = max(divide_up(job.num_kv_heads, most), min(busy, job.num_kv_heads));
  return divide_up(job.num_kv_heads, num_sets);
}

// Enlarges `sizes` to what `job` takes.
template <class Real>
void add_sizes(const kernel_table<Real>& kernels, const attention_job<Real>& job, index_t num_workers,
               scratch_sizes& sizes) {
  if (job.q.tokens == 0) return;
  sizes.angles = max(sizes.angles, row_turner<Real>::angle_count(job.encoding));
  sizes.far_angles = max(sizes.far_angles, query_turner<Real>::far_angle_count(job));
  sizes.head_dim = max(sizes.head_dim, round_up(job.head_dim(), row_multiple));
  sizes.v_head_dim = max(sizes.v_head_dim, round_up(job.v_head_dim(), row_multiple));
  sizes.width = max(sizes.width, kernels.lanes * kernels.tile_vectors);
  sizes.scores = max(sizes.scores, keys_per_block * sizes.width);
  const scratch_sizes rows = row_sizes(job);
  const index_t heads_together = heads_per_task(job, num_workers);
  for (int k = 0; k < num_key_kinds; ++k)
    sizes.key_elements[k] = max(sizes.key_elements[k], heads_together * rows.key_elements[k]);
  sizes.sink_value_elements = max(sizes.sink_value_elements, heads_together * rows.sink_value_elements);
  sizes.window_value_elements = max(sizes.window_value_elements, heads_together * rows.window_value_elements);
  if (!job.by_position()) {
    if (job.any_in_pairs())
      sizes.pair_words = max(sizes.pair_words, round_up(words_of_keys(true, job.head_dim()), row_multiple));
    return;
  }
  const index_t queries = min(job.q.tokens * job.group(), job.one_position->most_queries);
  const index_t keys = job.keys_seen() + 2 * job.q.tokens;  // some are near to one query and far from another
  sizes.width = max(sizes.width, queries);
  sizes.scores = max(sizes.scores, queries * round_up(keys + row_multiple, row_multiple));
  sizes.partial_rows = max(sizes.partial_rows, job.q.tokens * job.group() * num_parts(job));
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
