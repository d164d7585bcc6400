// What tiles multiply: pairs of bfloat16, two in a word, the first in its lower half. Keys and queries are paired along their
// dims, weights and values along the keys, by even and odd key of the sequence:
//
//     key j            d0 d1   d2 d3   ...               values of keys 2i and 2i + 1     d0 d0'   d1 d1'   ...
//
// Included by kernel_text_pairs.inl.

inline constexpr int numbers_per_word = 2;

LAMBDA_ATTENTION_INLINE index_t words_for(index_t dim) { return (dim + 1) / 2; }

LAMBDA_ATTENTION_INLINE floats words_of(const float* row, float scale) {
  return rounded(load(row) * scale, load(row + vectors<float>::lanes) * scale);
}

LAMBDA_ATTENTION_INLINE floats broadcast_word(const float* word) {
  std::uint32_t bits;
  std::memcpy(&bits, word, sizeof bits);
  const floats repeated = (floats)(bits_of_lanes<float>{} + bits);
#if defined(__clang__)  // 16 crashes where it sees that what is repeated becomes pairs.
  return held_in_register(repeated);
#else
  return repeated;
#endif
}

LAMBDA_ATTENTION_INLINE floats multiply_add(floats element, floats row, floats sum) {
  return add_products_of_pairs(element, row, sum);
}

// 2^x for a weight that will be rounded to 8 bits: a minimax polynomial of relative error 7.5e-5 on |f| <= 1/2.
template <class Real>
LAMBDA_ATTENTION_INLINE floats weight_of(floats x) {
  const floats n = round_to_whole(x);
  const floats f = x - n;
  floats p = broadcast(5.5171669e-2f);
  p = fused(p, f, broadcast(2.4261112e-1f));
  p = fused(p, f, broadcast(6.9326099e-1f));
  return scale_by_power(fused(p, f, broadcast(9.9992807e-1f)), n);
}

// A block begins at an even key; a segment whose first is odd lacks the one before.
LAMBDA_ATTENTION_INLINE index_t keys_missing_before(const tile_keys<float>& keys) { return keys.missing; }

LAMBDA_ATTENTION_INLINE floats as_multiplied(floats weight) { return rounded_number(weight); }

// Where a key stands alone, its partner weighs zero. The sum is that of the rounded weights: then they add up to one after
// the division, however few of them count.
template <int Keys>
LAMBDA_ATTENTION_INLINE floats store_weights(float* weights, index_t width, index_t first,
                                             const floats (&weight)[Keys]) {
  const floats ones = (floats)(bits_of_lanes<float>{} + 0x3f803f80U);
  floats sum = {};
  if constexpr (Keys == 1) {
    const floats words = first % 2 == 0 ? pairs_of(weight[0], floats{}) : pairs_of(floats{}, weight[0]);
    store(weights + first / 2 * width, words);
    sum = add_products_of_pairs(words, ones, sum);
  } else {
    LAMBDA_ATTENTION_UNROLL
    for (int k = 0; k < Keys; k += 2) {
      const floats words = pairs_of(weight[k], weight[k + 1]);
      store(weights + (first + k) / 2 * width, words);
      sum = add_products_of_pairs(words, ones, sum);
    }
  }
  return sum;
}

// By a power of two, which rounds nothing but what vanishes.
LAMBDA_ATTENTION_INLINE void scale_word(float* word, floats scale) {
  const bits_of_lanes<float> bits = (bits_of_lanes<float>)load(word);
  const floats lower = scaled_down((floats)(bits << 16), scale, lowest_weight<float>);
  const floats upper = scaled_down((floats)(bits & 0xffff0000U), scale, lowest_weight<float>);
  store(word, (floats)(((bits_of_lanes<float>)lower >> 16) | ((bits_of_lanes<float>)upper & 0xffff0000U)));
}

// A row of keys. What lies behind a row of numbers, up to 32, is read too.
inline void write_pairs(const float* row, index_t dim, float* words) {
  constexpr index_t lanes = vectors<float>::lanes;
  for (index_t d = 0; d < dim; d += 2 * lanes) store(words + d / 2, words_of(row + d, 1.0f));
}

// The numbers at one place of each word, the other zero, which a weight of zero does not make of every number.
inline void keep_in_words(const float* words, int place, index_t dim, float* kept) {
  constexpr index_t lanes = vectors<float>::lanes;
  const std::uint32_t mask = place == 0 ? 0xffffU : 0xffff0000U;
  for (index_t d = 0; d < dim; d += lanes) store(kept + d, (floats)((bits_of_lanes<float>)load(words + d) & mask));
}

// The bfloat16s of a value row, those of key `key`, to the row of words that it shares with the key beside it.
inline void join_values(const unsigned char* row, index_t dim, bool odd, float* words) {
  constexpr index_t lanes = vectors<float>::lanes;
  typedef std::uint16_t numbers __attribute__((vector_size(lanes * 2)));
  for (index_t d = 0; d < dim; d += lanes) {
    numbers part = {};
    if (d + lanes <= dim) {
      std::memcpy(&part, row + 2 * d, sizeof part);
    } else {
      std::memcpy(&part, row + 2 * d, static_cast<std::size_t>(2 * (dim - d)));
    }
    bits_of_lanes<float> joined = __builtin_convertvector(part, bits_of_lanes<float>);
    if (odd) joined = ((bits_of_lanes<float>)load(words + d) & 0xffffU) | (joined << 16);
    store(words + d, (floats)joined);
  }
}
