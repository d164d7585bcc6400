// A few queries, one, two or four of one KV head, against rows of bytes, by products of whole numbers. A
// query, and the weights of a few keys, are whole numbers times a unit of theirs, in two planes of bytes:
//
//     number = unit * (radix * upper + lower)      radix 128 and up to 127 * 128 for queries, which have signs
//                                                  radix 256 and up to 65535 for weights, which have none
//
// What that rounds away is little beside what rounding the rows themselves has: of a logit, at most
// (|q|max / 32512) |k| beside (|k|max / 254) |q|, both in the square mean; of the output, half a unit for each weight, 1 /
// 131070 of the largest among the keys that share a unit. Weights below that count as none, and the others, whose unit is
// set so that their sum stays what it was, for them too. Included by kernel_text_bytes.inl.

using whole_numbers = mask_of<float>;

inline constexpr index_t bytes_per_vector = vector_bytes;

// Keys whose weights share a unit, and whose rows stay in the nearest cache from one pass over a few columns to the next.
inline constexpr index_t keys_per_unit = 256;

struct byte_planes {
  alignas(vector_bytes) unsigned char upper[max_head_dim];
  alignas(vector_bytes) unsigned char lower[max_head_dim];
  float unit;
  std::int32_t sum;  // of the whole numbers
};

// `count` numbers, a multiple of the lanes, of at most `Largest` units. False where they have no useful unit: none far enough
// from zero, but not all zero, or not all finite.
template <int Largest, int RadixBits, int RoundsBy>
LAMBDA_ATTENTION_INLINE bool write_planes(const float* numbers, index_t count, byte_planes& planes) {
  constexpr index_t lanes = vectors<float>::lanes;
  typedef unsigned char bytes __attribute__((vector_size(lanes)));
  // As whole numbers, so that an infinity and NaNs are above all others.
  whole_numbers largest_bits = {};
  for (index_t i = 0; i < count; i += lanes) {
    const whole_numbers magnitude = (whole_numbers)load(numbers + i) & 0x7fffffff;
    largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
  }
  std::int32_t bits = 0;
  for (int l = 0; l < lanes; ++l) bits = largest_bits[l] > bits ? largest_bits[l] : bits;
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  if (bits != 0 && !(largest > 1e-30f && largest < 1e30f)) return false;
  const float per_unit = bits == 0 ? 0 : Largest / largest;
  whole_numbers sum = {};
  for (index_t i = 0; i < count; i += lanes) {
    const whole_numbers whole = __builtin_convertvector(round_to_whole(load(numbers + i) * per_unit), whole_numbers);
    const whole_numbers upper = (whole + RoundsBy) >> RadixBits, lower = whole - (upper << RadixBits);
    const bytes upper_bytes = __builtin_convertvector(upper, bytes);
    const bytes lower_bytes = __builtin_convertvector(lower, bytes);
    std::memcpy(planes.upper + i, &upper_bytes, sizeof upper_bytes);
    std::memcpy(planes.lower + i, &lower_bytes, sizeof lower_bytes);
    sum += whole;
  }
  planes.unit = largest / Largest;
  planes.sum = 0;
  for (int l = 0; l < lanes; ++l) planes.sum += sum[l];
  return true;
}
inline bool write_query_planes(const float* query, index_t padded_dim, byte_planes& planes) {
  return write_planes<127 * 128, 7, 64>(query, padded_dim, planes);
}

// The weights of `count` keys times the scales of their rows, and zeros behind them.
inline bool write_weight_planes(const float* weights, const float* scales, index_t count, byte_planes& planes) {
  constexpr index_t lanes = vectors<float>::lanes;
  alignas(vector_bytes) float products[keys_per_unit];
  floats total = {};
  index_t k = 0;
  for (; k < count; k += lanes) {
    const floats product = load_part(weights + k, count - k) * load_part(scales + k, count - k);
    store(products + k, product);
    total += product;
  }
  if (!write_planes<65535, 8, 0>(products, k, planes)) return false;
  if (planes.sum != 0) planes.unit = sum_of_lanes<float>(total) / static_cast<float>(planes.sum);
  return true;
}

LAMBDA_ATTENTION_INLINE whole_numbers load_bytes(const void* source) {
  whole_numbers bytes;
  std::memcpy(&bytes, source, sizeof bytes);
  return bytes;
}
// A vector of a row's bytes, each plus 128: of two factors, one has no sign.
LAMBDA_ATTENTION_INLINE whole_numbers load_unsigned(const unsigned char* source) {
  return (whole_numbers)((bits_of_lanes<float>)load_bytes(source) ^ 0x80808080U);
}

// The products of the rows [first, first + count) with the query of each head, `Columns` vectors of bytes from dim d on.
template <int Heads, int Columns>
LAMBDA_ATTENTION_INLINE void multiply_bytes(const byte_planes* queries, index_t padded_dim, const stored_rows& rows,
                                            index_t first, index_t count, index_t d,
                                            whole_numbers (*products)[vectors<float>::lanes]) {
  whole_numbers upper[Heads][Columns], lower[Heads][Columns];
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) {
      upper[h][c] = load_bytes(queries[h].upper + d + c * bytes_per_vector);
      lower[h][c] = load_bytes(queries[h].lower + d + c * bytes_per_vector);
    }
  }
  row_fetcher fetcher = fetcher_of_keys(rows, first, d, Columns * bytes_per_vector, padded_dim);
  const bool asks_for_one = Heads == 1 && asks_for_one_query(rows);
  const unsigned char* key = rows.keys + first * rows.key_row_bytes + d;
  for (index_t k = 0; k < count; ++k, key += rows.key_row_bytes) {
    if (asks_for_one) {
      fetch_for_one_query<Columns * bytes_per_vector>(key);
    } else {
      fetch<Columns * bytes_per_vector>(fetcher);
    }
    whole_numbers bytes[Columns];
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) bytes[c] = load_unsigned(key + c * bytes_per_vector);
    LAMBDA_ATTENTION_UNROLL
    for (int h = 0; h < Heads; ++h) {
      whole_numbers upper_sum = {}, lower_sum = d == 0 ? whole_numbers{} : products[h][k];
      LAMBDA_ATTENTION_UNROLL
      for (int c = 0; c < Columns; ++c) {
        upper_sum = add_products_of_bytes(bytes[c], upper[h][c], upper_sum);
        lower_sum = add_products_of_bytes(bytes[c], lower[h][c], lower_sum);
      }
      products[h][k] = (upper_sum << 7) + lower_sum;
    }
  }
}

template <int Heads>
void score_rows_of_bytes(const byte_planes* queries, index_t padded_dim, const stored_rows& rows, float* scores,
                         index_t score_stride) {
  constexpr index_t lanes = vectors<float>::lanes;
  constexpr index_t both = 2 * bytes_per_vector;
  for (index_t first = 0; first < rows.num_keys; first += lanes) {
    const index_t rest = rows.num_keys - first;
    const index_t count = rest < lanes ? rest : lanes;
    whole_numbers products[Heads][lanes];
    if (count < lanes) std::memset(products, 0, sizeof products);
    index_t d = 0;
    for (; d + both <= padded_dim; d += both)
      multiply_bytes<Heads, 2>(queries, padded_dim, rows, first, count, d, products);
    if (d < padded_dim) multiply_bytes<Heads, 1>(queries, padded_dim, rows, first, count, d, products);
    for (int h = 0; h < Heads; ++h) {
      const std::int32_t added = 128 * queries[h].sum;
      const floats sums = __builtin_convertvector(sums_of_rows(products[h]) - added, floats) * queries[h].unit;
      std::memcpy(scores + h * score_stride + first, &sums, static_cast<std::size_t>(count) * sizeof(float));
    }
  }
  for (int h = 0; h < Heads; ++h)
    for (index_t k = 0; k < rows.num_keys; ++k) scores[h * score_stride + k] *= rows.key_scales[k];
}

// Vectors of words of the bytes of four rows, byte r of each word from row r: within a block of 16 bytes the dims 4v ...
// 4v + 3 are in vector v.
LAMBDA_ATTENTION_INLINE void weave_four_rows(const whole_numbers (&row)[4], whole_numbers* woven) {
  const whole_numbers ab = weave_lower_bytes(row[0], row[1]), more_ab = weave_upper_bytes(row[0], row[1]);
  const whole_numbers cd = weave_lower_bytes(row[2], row[3]), more_cd = weave_upper_bytes(row[2], row[3]);
  woven[0] = (whole_numbers)weave_lower_halves((floats)ab, (floats)cd);
  woven[1] = (whole_numbers)weave_upper_halves((floats)ab, (floats)cd);
  woven[2] = (whole_numbers)weave_lower_halves((floats)more_ab, (floats)more_cd);
  woven[3] = (whole_numbers)weave_upper_halves((floats)more_ab, (floats)more_cd);
}

// sum[0 ... 64) += unit * (256 * upper + lower), of woven rows.
LAMBDA_ATTENTION_INLINE void add_woven_bytes(const whole_numbers (&upper)[4], const whole_numbers (&lower)[4],
                                             float unit, float* sum) {
  constexpr index_t lanes = vectors<float>::lanes;
  constexpr int block = 4;
  floats woven[4];
  LAMBDA_ATTENTION_UNROLL
  for (int v = 0; v < 4; ++v)
    woven[v] =
        fused(__builtin_convertvector(upper[v], floats), broadcast(256.0f), __builtin_convertvector(lower[v], floats)) *
        unit;
  // Block b of vector v is block v of vector b in order.
  floats even[2], odd[2];
  LAMBDA_ATTENTION_UNROLL
  for (index_t i = 0; i < 2; ++i) {
    even[i] = every_other_unit<block, lanes, 0>(woven[2 * i], woven[2 * i + 1], lanes_of<floats>{});
    odd[i] = every_other_unit<block, lanes, 1>(woven[2 * i], woven[2 * i + 1], lanes_of<floats>{});
  }
  store(sum, load(sum) + every_other_unit<block, lanes, 0>(even[0], even[1], lanes_of<floats>{}));
  sum += lanes;
  store(sum, load(sum) + every_other_unit<block, lanes, 0>(odd[0], odd[1], lanes_of<floats>{}));
  sum += lanes;
  store(sum, load(sum) + every_other_unit<block, lanes, 1>(even[0], even[1], lanes_of<floats>{}));
  sum += lanes;
  store(sum, load(sum) + every_other_unit<block, lanes, 1>(odd[0], odd[1], lanes_of<floats>{}));
}

// output[h] += the weights of a few keys times `Columns` vectors of bytes of each of their values, from dim d on.
template <int Heads, int Columns>
LAMBDA_ATTENTION_INLINE void add_value_columns(const byte_planes* weights, index_t padded_dim, const stored_rows& rows,
                                               index_t d, float* output) {
  constexpr index_t vector_size = vector_bytes;
  alignas(vector_bytes) static constexpr unsigned char zeros[Columns * vector_size] = {};
  row_fetcher fetcher = fetcher_of_values(rows, d, Columns * vector_size, padded_dim);
  whole_numbers upper[Heads][Columns][4] = {}, lower[Heads][Columns][4] = {};
  const bool asks_for_one = Heads == 1 && asks_for_one_query(rows);
  const unsigned char* value = rows.values + d;
  for (index_t k = 0; k < rows.num_keys; k += 4, value += 4 * rows.value_row_bytes) {
    if (asks_for_one) {
      LAMBDA_ATTENTION_UNROLL
      for (int r = 0; r < 4; ++r) fetch_for_one_query<Columns * vector_size>(value + r * rows.value_row_bytes);
    }
    if (Heads > 1 && fetcher.step != 0) {
      LAMBDA_ATTENTION_UNROLL
      for (int r = 0; r < 4; ++r) fetch<Columns * vector_size>(fetcher);
    }
    whole_numbers row[Columns][4];
    LAMBDA_ATTENTION_UNROLL
    for (int r = 0; r < 4; ++r) {
      const unsigned char* const source = value + r * rows.value_row_bytes;
      LAMBDA_ATTENTION_UNROLL
      for (int c = 0; c < Columns; ++c)
        row[c][r] = load_bytes((k + r < rows.num_keys ? source : zeros) + c * vector_size);
    }
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c) {
      whole_numbers woven[4];
      weave_four_rows(row[c], woven);
      LAMBDA_ATTENTION_UNROLL
      for (int h = 0; h < Heads; ++h) {
        const whole_numbers upper_weights = broadcast_four_bytes(weights[h].upper + k);
        const whole_numbers lower_weights = broadcast_four_bytes(weights[h].lower + k);
        LAMBDA_ATTENTION_UNROLL
        for (int v = 0; v < 4; ++v) {
          upper[h][c][v] = add_products_of_bytes(upper_weights, woven[v], upper[h][c][v]);
          lower[h][c][v] = add_products_of_bytes(lower_weights, woven[v], lower[h][c][v]);
        }
      }
    }
  }
  LAMBDA_ATTENTION_UNROLL
  for (int h = 0; h < Heads; ++h) {
    LAMBDA_ATTENTION_UNROLL
    for (int c = 0; c < Columns; ++c)
      add_woven_bytes(upper[h][c], lower[h][c], weights[h].unit, output + h * padded_dim + d + c * vector_size);
  }
}

// All dims, `Columns` vectors at a time, and one for the rest.
template <int Heads, int Columns>
LAMBDA_ATTENTION_INLINE void add_value_bytes(const byte_planes* weights, index_t padded_dim, const stored_rows& rows,
                                             float* output) {
  constexpr index_t width = Columns * bytes_per_vector;
  index_t d = 0;
  for (; d + width <= padded_dim; d += width) add_value_columns<Heads, Columns>(weights, padded_dim, rows, d, output);
  if (d < padded_dim) add_value_columns<Heads, 1>(weights, padded_dim, rows, d, output);
}

// Rows that are whole vectors of bytes.
LAMBDA_ATTENTION_INLINE bool taken_in_bytes(const stored_rows& rows, index_t padded_dim) {
  return rows.format == row_format::int8 && padded_dim % bytes_per_vector == 0;
}

// False, with nothing written, where the query of a head has no useful unit.
inline bool score_bytes(const float* queries, int heads, index_t padded_dim, const stored_rows& rows, float* scores,
                        index_t score_stride) {
  byte_planes planes[max_tile_vectors];
  for (int h = 0; h < heads; ++h)
    if (!write_query_planes(queries + h * padded_dim, padded_dim, planes[h])) return false;
  if (heads == 1) score_rows_of_bytes<1>(planes, padded_dim, rows, scores, score_stride);
  if (heads == 2) score_rows_of_bytes<2>(planes, padded_dim, rows, scores, score_stride);
  if (heads == 4) score_rows_of_bytes<4>(planes, padded_dim, rows, scores, score_stride);
  return true;
}

// The same of weights, of at most keys_per_unit keys.
inline bool add_bytes(const float* weights, index_t weight_stride, int heads, index_t padded_dim,
                      const stored_rows& rows, float* output) {
  byte_planes planes[max_tile_vectors];
  for (int h = 0; h < heads; ++h)
    if (!write_weight_planes(weights + h * weight_stride, rows.value_scales, rows.num_keys, planes[h])) return false;
  if (heads == 1) add_value_bytes<1, 2>(planes, padded_dim, rows, output);
  for (int h = 0; h + 2 <= heads; h += 2) add_value_bytes<2, 1>(planes + h, padded_dim, rows, output + h * padded_dim);
  return true;
}

// What else there is, the kernels of the ISA below take.
inline void score_rows(const float* queries, int heads, index_t padded_dim, const stored_rows& rows, float* scores,
                       index_t score_stride) {
  if (taken_in_bytes(rows, padded_dim) && score_bytes(queries, heads, padded_dim, rows, scores, score_stride)) return;
  avx512::score_rows<float>(queries, heads, padded_dim, rows, scores, score_stride);
}

inline void add_values(const float* weights, index_t weight_stride, int heads, index_t padded_dim,
                       const stored_rows& rows, float* output) {
  if (!taken_in_bytes(rows, padded_dim))
    return avx512::add_values<float>(weights, weight_stride, heads, padded_dim, rows, output);
  for (index_t first = 0; first < rows.num_keys; first += keys_per_unit) {
    const stored_rows block = rows.part(first, keys_per_unit);
    if (!add_bytes(weights + first, weight_stride, heads, padded_dim, block, output))
      avx512::add_values<float>(weights + first, weight_stride, heads, padded_dim, block, output);
  }
}
