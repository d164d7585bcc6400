// A few queries against rows of bfloat16: each word of a row is a pair of a key's numbers, and two rows woven
// into one another are pairs of values. Queries and weights are rounded. Included by kernel_text_pairs.inl.

#include <lambda_attention/detail/row_products.inl>

inline constexpr index_t bytes_of_number = 2, numbers_per_vector = vector_bytes / bytes_of_number;

// Rows that are whole vectors of words, for several heads. What else there is, the kernels of the ISAs below take: one head
// waits for memory, and weaving reads two rows at once, which memory serves worse.
LAMBDA_ATTENTION_INLINE bool taken_in_pairs(const stored_rows& rows, int heads, index_t padded_dim) {
  return heads > 1 && rows.format == row_format::bf16 && padded_dim % numbers_per_vector == 0;
}

inline void score_rows(const float* queries, int heads, index_t padded_dim, const stored_rows& rows, float* scores,
                       index_t score_stride) {
  if (!taken_in_pairs(rows, heads, padded_dim))
    return bytes::score_rows(queries, heads, padded_dim, rows, scores, score_stride);
  const index_t num_words = padded_dim / 2;
  alignas(vector_bytes) float words[max_tile_vectors * max_head_dim / 2];
  for (int h = 0; h < heads; ++h) write_pairs(queries + h * padded_dim, padded_dim, words + h * num_words);
  if (heads == 2) score_rows_of<row_format::f32, 2>(words, num_words, rows, scores, score_stride);
  if (heads == 4) score_rows_of<row_format::f32, 4>(words, num_words, rows, scores, score_stride);
}

// So many that what is done once for them hardly counts, and so few that what a pass over a few columns has fetched is there
// for the next.
inline constexpr index_t keys_together = 128;

// The weights of `count` keys, two in a word, and zeros behind them.
LAMBDA_ATTENTION_INLINE void write_weights(const float* weights, index_t count, float* words) {
  alignas(vector_bytes) float numbers[keys_together] = {};
  std::memcpy(numbers, weights, static_cast<std::size_t>(count) * sizeof(float));
  write_pairs(numbers, keys_together, words);
}

// sum[0 ... 32) += sums of a vector of words of two rows as they were woven, within blocks of 16 bytes.
LAMBDA_ATTENTION_INLINE void add_woven(floats lower, floats upper, float* sum) {
  constexpr index_t lanes = vectors<float>::lanes;
  store(sum, load(sum) + shuffled<0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23>(lower, upper));
  store(sum + lanes,
        load(sum + lanes) + shuffled<8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31>(lower, upper));
}

// output[h] += the weights of a few keys times `Columns` vectors of words of each of their values, from dim d on. Beside a last
// key that is alone are zeros.
template <int Heads, int Columns>
LAMBDA_ATTENTION_INLINE void add_value_columns(const float (*weights)[keys_together / 2], index_t padded_dim,
                                               const stored_rows& rows, index_t d, float* output) {
  constexpr index_t vector_size = vector_bytes;
  alignas(vector_bytes) static constexpr unsigned char zeros[Columns * vector_size] = {};
  floats acc[Heads][2 * Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < 2 * Columns; ++c) acc[h][c] = floats{};
  }
  row_fetcher fetcher =
      fetcher_of_values(rows, d * bytes_of_number, Columns * vector_size, padded_dim * bytes_of_number);
  const index_t row_bytes = rows.value_row_bytes;
  const unsigned char* value = rows.values + d * bytes_of_number;
  for (index_t k = 0; k < rows.num_keys; k += 2, value += 2 * row_bytes) {
    if (fetcher.step != 0) {
      fetch<Columns * vector_size>(fetcher);
      fetch<Columns * vector_size>(fetcher);
    }
    const unsigned char* const beside = k + 1 < rows.num_keys ? value + row_bytes : zeros;
    floats weight[Heads];
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) weight[h] = broadcast_word(weights[h] + k / 2);
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) {
      const floats first = held_in_register(load_stored<row_format::f32, float>(value + c * vector_size));
      const floats second = held_in_register(load_stored<row_format::f32, float>(beside + c * vector_size));
      const floats lower = weave_lower_halves(first, second), upper = weave_upper_halves(first, second);
      LAMBDA_ATTENTION_UNROLL
      for (int h = 0; h < Heads; ++h) {
        acc[h][2 * c] = multiply_add(weight[h], lower, acc[h][2 * c]);
        acc[h][2 * c + 1] = multiply_add(weight[h], upper, acc[h][2 * c + 1]);
      }
    }
  }
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c)
      add_woven(acc[h][2 * c], acc[h][2 * c + 1], output + h * padded_dim + d + c * numbers_per_vector);
  }
}

// All dims from d on, `Columns` vectors of words at a time, and fewer for the rest.
template <int Heads, int Columns>
LAMBDA_ATTENTION_INLINE void add_value_rows(const float (*weights)[keys_together / 2], index_t padded_dim,
                                            const stored_rows& rows, index_t d, float* output) {
  constexpr index_t width = Columns * numbers_per_vector;
  for (; d + width <= padded_dim; d += width) add_value_columns<Heads, Columns>(weights, padded_dim, rows, d, output);
  if constexpr (Columns > 1) add_value_rows<Heads, Columns / 2>(weights, padded_dim, rows, d, output);
}

template <int Heads>
void add_values_of(const float* weights, index_t weight_stride, index_t padded_dim, const stored_rows& rows,
                   float* output) {
  constexpr int columns = Heads == 4 ? 2 : 4;
  for (index_t first = 0; first < rows.num_keys; first += keys_together) {
    const stored_rows block = rows.part(first, keys_together);
    alignas(vector_bytes) float words[Heads][keys_together / 2];
    for (int h = 0; h < Heads; ++h) write_weights(weights + h * weight_stride + first, block.num_keys, words[h]);
    add_value_rows<Heads, columns>(words, padded_dim, block, 0, output);
  }
}

inline void add_values(const float* weights, index_t weight_stride, int heads, index_t padded_dim,
                       const stored_rows& rows, float* output) {
  if (!taken_in_pairs(rows, heads, padded_dim))
    return bytes::add_values(weights, weight_stride, heads, padded_dim, rows, output);
  if (heads == 2) add_values_of<2>(weights, weight_stride, padded_dim, rows, output);
  if (heads == 4) add_values_of<4>(weights, weight_stride, padded_dim, rows, output);
}
