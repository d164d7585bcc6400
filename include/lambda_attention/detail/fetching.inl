// Rows that are asked for before they are read. Included by kernel_text.inl.
//
// Rows that are read once, in order, by a core that computes for longer on them than memory takes, are best left to
// what AMD's processors fetch by themselves. A core that is faster overtakes that, and then waits for each line; where
// the lines of the next rows are asked for, no farther than a page ahead, it does not. What is not read in order is
// asked for far ahead.

inline constexpr index_t next_rows = 512, far_rows = 16384;

// For the row at hand, or for a part of it of so many bytes.
template <index_t NumBytes>
LAMBDA_ATTENTION_INLINE void fetch(row_fetcher& rows) {
  constexpr index_t cache_line = 64;
  LAMBDA_ATTENTION_UNROLL
  for (index_t b = 0; b < NumBytes; b += cache_line) __builtin_prefetch(rows.next + b, 0, 2);
  rows.next += rows.step;
}

// What one query reads, once and in order, a Zen 4 fetches at 0.9 of the read bandwidth by itself. A Sapphire Rapids
// does at 0.75, and at 0.92 where it is asked for into the nearest cache.
inline constexpr index_t bytes_ahead_for_one_query = 2048;
LAMBDA_ATTENTION_INLINE bool asks_for_one_query(const stored_rows& rows) { return rows.read_once && is_intel(); }
template <index_t NumBytes>
LAMBDA_ATTENTION_INLINE void fetch_for_one_query(const unsigned char* row) {
  constexpr index_t cache_line = 64;
  LAMBDA_ATTENTION_UNROLL
  for (index_t b = 0; b < NumBytes; b += cache_line) __builtin_prefetch(row + bytes_ahead_for_one_query + b, 0, 3);
}

// Of the keys from `first` on, of which num_bytes are read at a time, from first_byte on.
LAMBDA_ATTENTION_INLINE row_fetcher fetcher_of_keys(const stored_rows& rows, index_t first, index_t first_byte,
                                                    index_t num_bytes, index_t row_bytes) {
  const unsigned char* const key = rows.keys + first * rows.key_row_bytes;
  if (rows.asked_for) return {key + first_byte, rows.key_row_bytes};
  if (num_bytes < row_bytes) return {key + first_byte + far_rows, rows.key_row_bytes};
  if (rows.num_passes == 1) return {key + next_rows, rows.key_row_bytes};
  const index_t share = rows.key_row_bytes / rows.num_passes;
  return {rows.keys + rows.keys_ahead + first * share, share};
}

// Of values; no step where there is nothing to ask for.
LAMBDA_ATTENTION_INLINE row_fetcher fetcher_of_values(const stored_rows& rows, index_t first_byte, index_t num_bytes,
                                                      index_t row_bytes) {
  if (rows.asked_for) return {rows.values, 0};
  if (rows.num_passes == 1)
    return {rows.values + first_byte + far_rows, num_bytes < row_bytes ? rows.value_row_bytes : 0};
  const index_t share = rows.value_row_bytes / rows.num_passes;
  return {rows.values + rows.values_ahead + rows.num_keys * (share * first_byte / row_bytes),
          share * num_bytes / row_bytes};
}
