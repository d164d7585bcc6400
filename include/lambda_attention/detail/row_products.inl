// The products of rows, as they are stored, with the queries of a few heads: a vector along the row. Over operands, as
// tile.inl is. Included by single_position.inl and kernel_text_pairs.inl.

// The products of `count` rows with the query of each head, dims [d, d + Columns * lanes) of them: vectors of sums that are
// still to be added up. The queries stay in registers, and rows are read strictly in order, as the hardware prefetches them.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void multiply_columns(const Real* queries, index_t padded_dim, const unsigned char* key,
                                              index_t row_bytes, index_t count, index_t d,
                                              vector_of<Real> (*products)[vectors<Real>::lanes]) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int run = vectors_at_once<Format, Columns>;
  vector_of<Real> query[Heads][Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; c += run)
      load_in_order_of_runs<run>(queries + h * padded_dim + d + c * lanes, query[h] + c);
  }
  key += d * element_bytes<Format>;
  for (index_t k = 0; k < count; ++k, key += row_bytes) {
    fetch_ahead<Heads>(key, Columns * lanes * element_bytes<Format>);
    vector_of<Real> acc[Heads];
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) acc[h] = d == 0 ? vector_of<Real>{} : products[h][k];
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; c += run) {
      vector_of<Real> element[run];
      load_run<Format, run, Real>(key + c * lanes * element_bytes<Format>, element);
      LAMBDA_ATTENTION_UNROLL
      for (int v = 0; v < run; ++v) {
        LAMBDA_ATTENTION_UNROLL
        for (int h = 0; h < Heads; ++h) acc[h] = multiply_add(element[v], query[h][c + v], acc[h]);
      }
    }
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) products[h][k] = acc[h];
  }
}

// All dims from d on, `Columns` vectors at a time, and fewer for the rest.
template <row_format Format, int Heads, int Columns, class Real>
LAMBDA_ATTENTION_INLINE void multiply_rows(const Real* queries, index_t padded_dim, const unsigned char* key,
                                           index_t row_bytes, index_t count, index_t d,
                                           vector_of<Real> (*products)[vectors<Real>::lanes]) {
  constexpr index_t width = Columns * vectors<Real>::lanes;
  for (; d + width <= padded_dim; d += width)
    multiply_columns<Format, Heads, Columns>(queries, padded_dim, key, row_bytes, count, d, products);
  if constexpr (Columns > 1)
    multiply_rows<Format, Heads, Columns / 2>(queries, padded_dim, key, row_bytes, count, d, products);
}

template <row_format Format, int Heads, class Real>
void score_rows_of(const Real* queries, index_t padded_dim, const stored_rows& rows, Real* scores,
                   index_t score_stride) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr int columns = Heads == 1 ? 8 : query_vectors / Heads;
  const unsigned char* key = rows.keys;
  for (index_t first = 0; first < rows.num_keys; first += lanes, key += lanes * rows.key_row_bytes) {
    const index_t rest = rows.num_keys - first;
    const index_t count = rest < lanes ? rest : lanes;
    vector_of<Real> products[Heads][lanes];
    if (count < lanes) std::memset(products, 0, sizeof products);
    multiply_rows<Format, Heads, columns>(queries, padded_dim, key, rows.key_row_bytes, count, 0, products);
    for (int h = 0; h < Heads; ++h) {
      Real* const score = scores + h * score_stride + first;
      const vector_of<Real> sums = sums_of_rows<Real>(products[h]);
      if (count == lanes) {
        store_loose(score, sums);
      } else {
        std::memcpy(score, &sums, static_cast<std::size_t>(count) * sizeof(Real));
      }
    }
  }
  if constexpr (Format == row_format::int8) {
    for (int h = 0; h < Heads; ++h)
      for (index_t k = 0; k < rows.num_keys; ++k) scores[h * score_stride + k] *= rows.key_scales[k];
  }
}
