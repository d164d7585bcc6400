// A few queries, 1, 2 or 4 "heads" of one KV head at any positions, against rows as they are stored: a vector along the row,
// each row read from memory once for all of them. Rows have a multiple of row_multiple numbers. Included by kernel_text.inl.

// A run of elements as it is quickest to widen: `Vectors` of them from one load, of lanes elements each. The bits of a
// bfloat16 are the upper half of a float's, so that in a vector of them a mask leaves those at odd places and a shift those
// at even places, where widening them in order would take a shuffle more.
template <row_format Format, int Columns>
inline constexpr int vectors_at_once = Format == row_format::bf16&& Columns % 2 == 0 ? 2 : 1;

template <row_format Format, int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void load_run(const unsigned char* source, vector_of<Real>* element) {
  if constexpr (Vectors == 1) {
    element[0] = load_stored<Format, Real>(source);
  } else {
    static_assert(Format == row_format::bf16 && Vectors == 2, "the format that has runs of two vectors");
    bits_of_lanes<Real> bits;
    std::memcpy(&bits, source, sizeof bits);
    bits = held_in_register(bits);
    element[0] = (vector_of<Real>)(bits << 16);
    element[1] = (vector_of<Real>)(bits & 0xffff0000U);
  }
}

// Numbers in the order in which load_run has the elements.
template <int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void load_in_order_of_runs(const Real* source, vector_of<Real>* numbers) {
  if constexpr (Vectors == 1) {
    numbers[0] = load(source);
  } else {
    const vector_of<Real> a = load(source), b = load(source + vectors<Real>::lanes);
    numbers[0] = even_lanes(a, b);
    numbers[1] = odd_lanes(a, b);
  }
}

// Vectors of queries, or of sums, that stay in registers: so many of each head.
template <int Heads>
inline constexpr int columns_for = Heads == 1 ? 8 : num_registers / 2 / Heads;
template <int Columns>
inline constexpr int columns_of_smaller_run = Columns == 8 ? 4 : 1;

#include <lambda_attention/detail/row_products.inl>

// Narrow vectors, and few, compute for so long on a row that loading it for each head costs nothing beside it; kernels of
// several heads would only cost the time to compile them. A few rows go through all heads, so that memory is read once.
inline constexpr bool one_head_at_a_time = vector_bytes == 16 && num_registers == 16;
inline constexpr index_t rows_for_all_heads = 64;

template <row_format Format, class Real>
void score_rows_in(const Real* queries, int heads, index_t padded_dim, const stored_rows& rows, Real* scores,
                   index_t score_stride) {
  if constexpr (one_head_at_a_time) {
    for (index_t first = 0; first < rows.num_keys; first += rows_for_all_heads) {
      const stored_rows part = rows.part(first, rows_for_all_heads);
      for (int h = 0; h < heads; ++h)
        score_rows_of<Format, 1>(queries + h * padded_dim, padded_dim, part, scores + h * score_stride + first,
                                 score_stride);
    }
  } else {
    if (heads == 1) score_rows_of<Format, 1>(queries, padded_dim, rows, scores, score_stride);
    if (heads == 2) score_rows_of<Format, 2>(queries, padded_dim, rows, scores, score_stride);
    if (heads == 4) score_rows_of<Format, 4>(queries, padded_dim, rows, scores, score_stride);
  }
}

template <class Real>
void score_rows(const Real* queries, int heads, index_t padded_dim, const stored_rows& rows, Real* scores,
                index_t score_stride) {
  if constexpr (sizeof(Real) == 8) {
    score_rows_in<row_format::f64>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::f32) {
    score_rows_in<row_format::f32>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::f16) {
    score_rows_in<row_format::f16>(queries, heads, padded_dim, rows, scores, score_stride);
  } else if (rows.format == row_format::bf16) {
    score_rows_in<row_format::bf16>(queries, heads, padded_dim, rows, scores, score_stride);
  } else {
    score_rows_in<row_format::int8>(queries, heads, padded_dim, rows, scores, score_stride);
  }
}

// Soft cap and bias of one head's scores; key k is at distance - key_step * k.
template <class Real>
void adjust_scores(Real* scores, index_t num_keys, Real soft_cap, Real slope, const Real* bias_row,
                   index_t num_distances, index_t distance, int key_step) {
  constexpr index_t lanes = vectors<Real>::lanes;
  if (soft_cap > 0) {
    for (index_t k = 0; k < num_keys; k += lanes) {
      alignas(vector_bytes) Real chunk[lanes] = {};
      const std::size_t bytes = static_cast<std::size_t>(num_keys - k < lanes ? num_keys - k : lanes) * sizeof(Real);
      std::memcpy(chunk, scores + k, bytes);
      store(chunk, tanh<Real>(load(chunk) / soft_cap) * soft_cap);
      std::memcpy(scores + k, chunk, bytes);
    }
  }
  if (bias_row != nullptr) {
    for (index_t k = 0; k < num_keys; ++k) {
      index_t d = distance - key_step * k;
      if (d < -bias_table::margin) d = -bias_table::margin;  // a key after its query, whose score is hidden later
      scores[k] += bias_row[d < num_distances ? d : num_distances];
    }
  } else if (slope != 0) {
    for (index_t k = 0; k < num_keys; ++k) scores[k] -= slope * static_cast<Real>(distance - key_step * k);
  }
}

// sum[0 ... ) += vectors of numbers in the order of a run.
template <int Vectors, class Real>
LAMBDA_ATTENTION_INLINE void add_run(const vector_of<Real>* numbers, Real* sum) {
  constexpr index_t lanes = vectors<Real>::lanes;
  if constexpr (Vectors == 1) {
    store(sum, load(sum) + numbers[0]);
  } else {
    store(sum, load(sum) + weave_lower(numbers[0], numbers[1]));
    store(sum + lanes, load(sum + lanes) + weave_upper(numbers[0], numbers[1]));
  }
}

// output[h] += weights[h] * values, `Columns` vectors of each row from dim d.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void add_value_columns(const Real* weights, index_t weight_stride, index_t padded_dim,
                                               const stored_rows& rows, index_t d, Real* output) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int run = vectors_at_once<Format, Columns>;
  vector_of<Real> acc[Heads][Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) acc[h][c] = vector_of<Real>{};
  }
  constexpr index_t element_size = element_bytes<Format>, num_bytes = Columns * lanes * element_size;
  row_fetcher fetcher = fetcher_of_values(rows, d * element_size, num_bytes, padded_dim * element_size);
  const bool asks_for_one = Heads == 1 && asks_for_one_query(rows);
  const unsigned char* value = rows.values + d * element_size;
  for (index_t k = 0; k < rows.num_keys; ++k, value += rows.value_row_bytes) {
    if constexpr (Heads > 1) {
      if (fetcher.step != 0) fetch<num_bytes>(fetcher);
    }
    if (asks_for_one) fetch_for_one_query<num_bytes>(value);
    const Real scale = Format == row_format::int8 ? static_cast<Real>(rows.value_scales[k]) : Real(1);
    vector_of<Real> weight[Heads];
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) weight[h] = broadcast(weights[h * weight_stride + k] * scale);
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; c += run) {
      vector_of<Real> element[run];
      load_run<Format, run, Real>(value + c * lanes * element_size, element);
      LAMBDA_ATTENTION_UNROLL
      for (int v = 0; v < run; ++v) {
        LAMBDA_ATTENTION_UNROLL
        for (int h = 0; h < Heads; ++h) acc[h][c + v] = fused(element[v], weight[h], acc[h][c + v]);
      }
    }
  }
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; c += run) add_run<run>(acc[h] + c, output + h * padded_dim + d + c * lanes);
  }
}

// Values of 64 tokens at a time, so that what a pass over a few columns has fetched is there for the next pass, and so that
// rounding hardly grows with the number of keys.
template <row_format Format, int Heads, class Real>
void add_values_of(const Real* weights, index_t weight_stride, index_t padded_dim, const stored_rows& rows,
                   Real* output) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int columns = columns_for<Heads>;
  constexpr index_t keys_together = 64;
  for (index_t first = 0; first < rows.num_keys; first += keys_together) {
    const stored_rows block = rows.part(first, keys_together);
    index_t d = 0;
    for (; d + columns * lanes <= padded_dim; d += columns * lanes)
      add_value_columns<Format, Heads, columns>(weights + first, weight_stride, padded_dim, block, d, output);
    for (; d < padded_dim; d += lanes)
      add_value_columns<Format, Heads, 1>(weights + first, weight_stride, padded_dim, block, d, output);
  }
}

template <row_format Format, class Real>
void add_values_in(const Real* weights, index_t weight_stride, int heads, index_t padded_dim, const stored_rows& rows,
                   Real* output) {
  if constexpr (one_head_at_a_time) {
    for (index_t first = 0; first < rows.num_keys; first += rows_for_all_heads) {
      const stored_rows part = rows.part(first, rows_for_all_heads);
      for (int h = 0; h < heads; ++h)
        add_values_of<Format, 1>(weights + h * weight_stride + first, weight_stride, padded_dim, part,
                                 output + h * padded_dim);
    }
  } else {
    if (heads == 1) add_values_of<Format, 1>(weights, weight_stride, padded_dim, rows, output);
    if (heads == 2) add_values_of<Format, 2>(weights, weight_stride, padded_dim, rows, output);
    if (heads == 4) add_values_of<Format, 4>(weights, weight_stride, padded_dim, rows, output);
  }
}

template <class Real>
void add_values(const Real* weights, index_t weight_stride, int heads, index_t padded_dim, const stored_rows& rows,
                Real* output) {
  if constexpr (sizeof(Real) == 8) {
    add_values_in<row_format::f64>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::f32) {
    add_values_in<row_format::f32>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::f16) {
    add_values_in<row_format::f16>(weights, weight_stride, heads, padded_dim, rows, output);
  } else if (rows.format == row_format::bf16) {
    add_values_in<row_format::bf16>(weights, weight_stride, heads, padded_dim, rows, output);
  } else {
    add_values_in<row_format::int8>(weights, weight_stride, heads, padded_dim, rows, output);
  }
}
