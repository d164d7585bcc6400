// What tiles multiply: numbers, one a word. Included by kernel_text.inl.

inline constexpr int numbers_per_word = 1;

LAMBDA_ATTENTION_INLINE index_t words_for(index_t dim) { return dim; }

// A vector of words from the numbers of a row.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> words_of(const Real* row, Real scale) {
  return load(row) * scale;
}

template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> broadcast_word(const Real* word) {
  return broadcast(*word);
}

// sum += element * row, lane by lane.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector multiply_add(Vector element, Vector row, Vector sum) {
  return fused(element, row, sum);
}

// 2^x.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> weight_of(vector_of<Real> x) {
  return exp2<Real>(x);
}

// A weight as values are multiplied by it.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector as_multiplied(Vector weight) {
  return weight;
}

// Stores weights of keys number `first` ... of a block, one vector of each. Returns their sum.
template <int Keys, class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> store_weights(Real* weights, index_t width, index_t first,
                                                      const vector_of<Real> (&weight)[Keys]) {
  vector_of<Real> sum = {};
  LAMBDA_ATTENTION_UNROLL
  for (int k = 0; k < Keys; ++k) {
    store(weights + (first + k) * width, weight[k]);
    sum += weight[k];
  }
  return sum;
}

template <class Real>
LAMBDA_ATTENTION_INLINE void scale_word(Real* word, vector_of<Real> scale) {
  store(word, scaled_down(load(word), scale, lowest_weight<Real>));
}

// The first key of a segment is the first of a block.
template <class Real>
LAMBDA_ATTENTION_INLINE index_t keys_missing_before(const tile_keys<Real>&) {
  return 0;
}
