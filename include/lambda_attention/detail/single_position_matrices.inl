// Many queries, at any positions, against rows of bfloat16s as they are stored, with the products done by a matrix unit: rows
// of keys are its left factor as they lie, and pairs of rows of values, woven into one another, its right one:
//
//     S^T [32 keys][32 queries]  +=  K [32 keys][16 words]         Q^T [16 words][32 queries]
//     O [32 queries][32 dims]    +=  P [32 queries][16 pairs]      V [16 pairs][32 dims]
//
// Included by kernel_text_matrices.inl.

inline constexpr int most_queries = 2 * matrix_size;  // two registers of them; 16 or fewer take one
inline constexpr index_t row_of_words = 4 * matrix_size;

// Few queries wait for memory whatever multiplies them, and are not rounded. Nor are those of rows that are no bfloat16s, that
// do not fill the registers, or that are so few that packing what they meet takes longer than floats.
inline constexpr int fewest_queries = max_tile_vectors + 1;
inline constexpr index_t fewest_scores = 256;
LAMBDA_ATTENTION_INLINE bool taken_in_matrices(const stored_rows& rows, int queries, index_t padded_dim) {
  return queries >= fewest_queries && queries * rows.num_keys >= fewest_scores && rows.format == row_format::bf16 &&
         padded_dim % dims_per_step == 0;
}

// Calls pass(rows, done, query, count) for a few rows at a time, of which `done` came before, and `count` queries of each.
template <class Pass>
void for_each_few(const stored_rows& rows, int queries, Pass&& pass) {
  constexpr index_t rows_together = 128;
  for (index_t done = 0; done < rows.num_keys; done += rows_together) {
    for (int query = 0, count = max_tile_vectors; query < queries; query += count) {
      while (count > queries - query) count /= 2;
      pass(rows.part(done, rows_together), done, query, count);
    }
  }
}

// Rows to come, asked for a few lines at a time, evenly between all there is to compute: a burst of them would fill the core's
// buffers for lines that are under way, and it would wait.
class line_fetcher {
 public:
  line_fetcher(const unsigned char* row, index_t row_bytes, index_t bytes_read, bool asked_for)
      : row_(row), row_bytes_(row_bytes), bytes_read_(asked_for ? 0 : bytes_read) {}

  LAMBDA_ATTENTION_INLINE void fetch(index_t lines) {
    if (bytes_read_ == 0) return;
    for (; lines > 0; --lines) {
      __builtin_prefetch(row_ + done_, 0, 2);
      done_ += row_of_words;
      if (done_ < bytes_read_) continue;
      done_ = 0;
      row_ += row_bytes_;
    }
  }

 private:
  const unsigned char* row_;
  index_t row_bytes_;
  index_t bytes_read_;
  index_t done_ = 0;  // bytes of the row
};

// `count` rows of queries, two numbers in a word, to the columns of a panel of `Columns` registers. Columns of none are zeros.
template <int Columns>
LAMBDA_ATTENTION_INLINE void pack_queries(const float* queries, int count, index_t dim, float* panel) {
  for (index_t word = 0; word < dim / 2; word += matrix_size)
    for (int column = 0; column < Columns; ++column) {
      floats block[matrix_size];
      for (int i = 0; i < matrix_size; ++i) {
        const int query = column * static_cast<int>(matrix_size) + i;
        block[i] = query < count ? words_of(queries + query * dim + 2 * word, 1.0f) : floats{};
      }
      transpose<float>(block);
      for (int i = 0; i < matrix_size; ++i)
        store(panel + (word + i) * Columns * matrix_size + column * matrix_size, block[i]);
    }
}

// Scores as the matrix unit gives them, a row for each of num_keys keys, to a row for each query. Asks for `lines` at each
// transposition.
template <int Columns>
LAMBDA_ATTENTION_INLINE void write_scores(const float* sums, index_t num_keys, int queries, float* scores,
                                          index_t score_stride, line_fetcher& fetcher, index_t lines) {
  for (index_t k = 0; k < num_keys; k += matrix_size) {
    const index_t count = min(num_keys - k, matrix_size);
    for (int column = 0; column < Columns; ++column) {
      fetcher.fetch(lines);
      floats block[matrix_size];
      LAMBDA_ATTENTION_UNROLL
      for (int i = 0; i < matrix_size; ++i) block[i] = load(sums + ((k + i) * Columns + column) * matrix_size);
      transpose<float>(block);
      const int first = column * static_cast<int>(matrix_size);
      for (int query = first; query < min(queries, first + matrix_size); ++query) {
        float* const score = scores + query * score_stride + k;
        if (count == matrix_size) {
          store_loose(score, block[query - first]);
        } else {
          std::memcpy(score, &block[query - first], static_cast<std::size_t>(count) * sizeof(float));
        }
      }
    }
  }
}

template <int Columns>
void score_matrix_rows(const float* queries, int count, index_t padded_dim, const stored_rows& rows, float* scores,
                       index_t score_stride) {
  alignas(vector_bytes) float panel[max_head_dim / 2 * Columns * matrix_size],
      sums[keys_per_step * Columns * matrix_size];
  alignas(vector_bytes) unsigned char last_rows[keys_per_step * row_of_words] = {};
  pack_queries<Columns>(queries, count, padded_dim, panel);
  line_fetcher fetcher(rows.keys + far_rows, rows.key_row_bytes, 2 * padded_dim, rows.asked_for);
  const index_t lines_of_step = keys_per_step * padded_dim / dims_per_step;
  const matrix_unit unit;
  for (index_t k = 0; k < rows.num_keys; k += keys_per_step) {
    const index_t num_keys = min(rows.num_keys - k, keys_per_step);
    clear_sums();
    for (index_t word = 0; word < padded_dim / 2; word += matrix_size) {
      fetcher.fetch(keys_per_step / 2);
      const unsigned char* keys = rows.keys + k * rows.key_row_bytes + 4 * word;
      index_t row_bytes = rows.key_row_bytes;
      if (num_keys < keys_per_step) {
        for (index_t i = 0; i < num_keys; ++i)
          std::memcpy(last_rows + i * row_of_words, keys + i * row_bytes, static_cast<std::size_t>(row_of_words));
        keys = last_rows;
        row_bytes = row_of_words;
      }
      add_block_of_products<2, Columns>(keys, row_bytes, panel + word * Columns * matrix_size, Columns * matrix_size);
    }
    store_sums<2, Columns>(sums, Columns * matrix_size);
    write_scores<Columns>(sums, num_keys, count, scores + k, score_stride, fetcher, lines_of_step / 4 / Columns);
  }
}

inline void score_rows(const float* queries, int count, index_t padded_dim, const stored_rows& rows, float* scores,
                       index_t score_stride) {
  if (!taken_in_matrices(rows, count, padded_dim)) {
    for_each_few(rows, count, [&](const stored_rows& part, index_t done, int query, int few) {
      bytes::score_rows(queries + query * padded_dim, few, padded_dim, part, scores + query * score_stride + done,
                        score_stride);
    });
  } else if (count <= matrix_size) {
    score_matrix_rows<1>(queries, count, padded_dim, rows, scores, score_stride);
  } else {
    score_matrix_rows<2>(queries, count, padded_dim, rows, scores, score_stride);
  }
}

// Rows of values, two woven into one another, and zeros for those behind the last: [32 dims][pair][two registers].
LAMBDA_ATTENTION_INLINE void weave_values(const stored_rows& rows, index_t padded_dim, float* woven, index_t stride,
                                          line_fetcher& fetcher) {
  alignas(vector_bytes) static constexpr unsigned char zeros[vector_bytes] = {};
  const index_t end = round_up(rows.num_keys, keys_per_step);
  for (index_t k = 0; k < end; k += 2) {
    fetcher.fetch(padded_dim / dims_per_step);
    const unsigned char* const value = rows.values + k * rows.value_row_bytes;
    const bool there = k < rows.num_keys, beside_there = k + 1 < rows.num_keys;
    for (index_t d = 0; d < padded_dim; d += dims_per_step) {
      const floats first = load_stored<row_format::f32, float>(there ? value + 2 * d : zeros);
      const floats second =
          load_stored<row_format::f32, float>(beside_there ? value + rows.value_row_bytes + 2 * d : zeros);
      float* const words = woven + d / dims_per_step * stride + k * matrix_size;
      store(words, weave_lower_halves(first, second));
      store(words + matrix_size, weave_upper_halves(first, second));
    }
  }
}

// The weights of `count` keys, two in a word, to `num_words` words, with zeros behind them.
LAMBDA_ATTENTION_INLINE void round_weights(const float* weights, index_t count, index_t num_words, float* words) {
  for (index_t word = 0; word < num_words; word += matrix_size) {
    const float* const pairs = weights + 2 * word;
    if (2 * (word + matrix_size) <= count) {
      store(words + word, rounded(load_loose(pairs), load_loose(pairs + matrix_size)));
    } else {
      alignas(vector_bytes) float last[2 * matrix_size] = {};
      std::memcpy(last, pairs, static_cast<std::size_t>(count - 2 * word) * sizeof(float));
      store(words + word, words_of(last, 1.0f));
    }
  }
}

template <int Rows>
void add_matrix_values(const float* weights, index_t weight_stride, int count, index_t padded_dim,
                       const stored_rows& rows, float* output) {
  constexpr index_t most_words = 8192, word_stride = keys_together / 2;  // 32 KiB of values
  alignas(vector_bytes) float words[Rows * matrix_size * word_stride] = {}, woven[most_words],
                                                         sums[Rows * matrix_size * 2 * matrix_size];
  const index_t together = min(keys_together, 2 * most_words / padded_dim / keys_per_step * keys_per_step);
  const matrix_unit unit;
  for (index_t first = 0; first < rows.num_keys; first += together) {
    const stored_rows block = rows.part(first, together);
    const index_t stride = together * matrix_size, num_words = round_up(block.num_keys, keys_per_step) / 2;
    line_fetcher fetcher(block.values + together * rows.value_row_bytes, rows.value_row_bytes, 2 * padded_dim,
                         rows.asked_for);
    for (int query = 0; query < count; ++query)
      round_weights(weights + query * weight_stride + first, block.num_keys, num_words, words + query * word_stride);
    weave_values(block, padded_dim, woven, stride, fetcher);
    for (index_t d = 0; d < padded_dim; d += dims_per_step) {
      const float* const values = woven + d / dims_per_step * stride;
      clear_sums();
      for (index_t word = 0; word < num_words; word += matrix_size) {
        fetcher.fetch(keys_per_step / 2);
        add_block_of_products<Rows, 2>(words + word, 4 * word_stride, values + word * 2 * matrix_size, 2 * matrix_size);
      }
      store_sums<Rows, 2>(sums, 2 * matrix_size);
      for (int query = 0; query < count; ++query) {
        const float* const sum = sums + 2 * matrix_size * query;
        add_woven(load(sum), load(sum + matrix_size), output + query * padded_dim + d);
      }
    }
  }
}

inline void add_values(const float* weights, index_t weight_stride, int count, index_t padded_dim,
                       const stored_rows& rows, float* output) {
  if (!taken_in_matrices(rows, count, padded_dim)) {
    for_each_few(rows, count, [&](const stored_rows& part, index_t done, int query, int few) {
      bytes::add_values(weights + query * weight_stride + done, weight_stride, few, padded_dim, part,
                        output + query * padded_dim);
    });
  } else if (count <= matrix_size) {
    add_matrix_values<1>(weights, weight_stride, count, padded_dim, rows, output);
  } else {
    add_matrix_values<2>(weights, weight_stride, count, padded_dim, rows, output);
  }
}
