// Vectors of the ISA at hand: loads, lane sums, exponentials. Included by kernel_text.inl.

template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> load(const Real* source) {
  return *reinterpret_cast<const typename vectors<Real>::strict*>(source);
}
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> load_loose(const Real* source) {
  return *reinterpret_cast<const typename vectors<Real>::loose*>(source);
}
template <class Real>
LAMBDA_ATTENTION_INLINE void store(Real* destination, vector_of<Real> numbers) {
  *reinterpret_cast<typename vectors<Real>::strict*>(destination) = numbers;
}
template <class Real>
LAMBDA_ATTENTION_INLINE void store_loose(Real* destination, vector_of<Real> numbers) {
  *reinterpret_cast<typename vectors<Real>::loose*>(destination) = numbers;
}

// Compilers like to load again what two instructions need, where loads are what is scarce. This they see nothing of.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector held_in_register(Vector x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

// x - 0 and not x + 0, which would turn -0 into 0 and so cost an addition.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> broadcast(Real x) {
  return x - vector_of<Real>{};
}

// Two rows of lanes, a and b, woven into one another: the lower half of a0 b0 a1 b1 ..., and the upper.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector weave_lower(Vector a, Vector b) {
  constexpr int lanes = sizeof(Vector) / sizeof(a[0]);
  if constexpr (lanes == 2) return shuffled<0, 2>(a, b);
  if constexpr (lanes == 4) return shuffled<0, 4, 1, 5>(a, b);
  if constexpr (lanes == 8) return shuffled<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
  if constexpr (lanes == 16) return shuffled<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
}
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector weave_upper(Vector a, Vector b) {
  constexpr int lanes = sizeof(Vector) / sizeof(a[0]);
  if constexpr (lanes == 2) return shuffled<1, 3>(a, b);
  if constexpr (lanes == 4) return shuffled<2, 6, 3, 7>(a, b);
  if constexpr (lanes == 8) return shuffled<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
  if constexpr (lanes == 16) return shuffled<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
}

// A square of numbers, a vector a row, transposed. Weaving rows i and i + lanes / 2 into rows 2i and 2i + 1 turns the bits
// of (row, column), written one after the other, by one place; after as many rounds as a column has bits the two have
// changed places.
template <class Real, int Rounds>
LAMBDA_ATTENTION_INLINE void weave_rows(vector_of<Real> (&rows)[vectors<Real>::lanes]) {
  constexpr int half = vectors<Real>::lanes / 2;
  vector_of<Real> woven[2 * half];
  LAMBDA_ATTENTION_UNROLL
  for (int i = 0; i < half; ++i) {
    woven[2 * i] = weave_lower(rows[i], rows[i + half]);
    woven[2 * i + 1] = weave_upper(rows[i], rows[i + half]);
  }
  LAMBDA_ATTENTION_UNROLL
  for (int i = 0; i < 2 * half; ++i) rows[i] = woven[i];
  if constexpr (Rounds > 1) weave_rows<Real, Rounds - 1>(rows);
}
template <class Real>
LAMBDA_ATTENTION_INLINE void transpose(vector_of<Real> (&rows)[vectors<Real>::lanes]) {
  constexpr int lanes = vectors<Real>::lanes;
  weave_rows<Real, lanes == 16 ? 4 : lanes == 8 ? 3 : lanes == 4 ? 2 : 1>(rows);
}

// Lane l of what every_other_unit takes of two vectors: within each span of lanes, the units of so many lanes at even (or
// odd) places of a, then those of b.
//
//     unit 1, span 4, even:    a0 a2 b0 b2  a4 a6 b4 b6 ...
constexpr int lane_of_other_unit(int l, int lanes, int unit, int span, int odd) {
  const int units_of_each = span / unit / 2;
  const int place = l % span / unit;
  return (place < units_of_each ? 0 : lanes) + l / span * span + (2 * (place % units_of_each) + odd) * unit + l % unit;
}
template <int Unit, int Span, int Odd, class Vector, std::size_t... Lane>
LAMBDA_ATTENTION_INLINE Vector every_other_unit(Vector a, Vector b, std::index_sequence<Lane...>) {
  // As floats: compilers know more shuffles of those than of whole numbers.
  if constexpr (std::is_same_v<Vector, mask_of<float>>)
    return (Vector)every_other_unit<Unit, Span, Odd>((vector_of<float>)a, (vector_of<float>)b,
                                                     std::index_sequence<Lane...>{});
  else
    return shuffled<lane_of_other_unit(Lane, sizeof...(Lane), Unit, Span, Odd)...>(a, b);
}
template <class Vector>
using lanes_of = std::make_index_sequence<sizeof(Vector) / sizeof(std::declval<Vector>()[0])>;

// The elements of a and b at even places, in order, and those at odd places.
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector even_lanes(Vector a, Vector b) {
  return every_other_unit<1, lanes_of<Vector>::size(), 0>(a, b, lanes_of<Vector>{});
}
template <class Vector>
LAMBDA_ATTENTION_INLINE Vector odd_lanes(Vector a, Vector b) {
  return every_other_unit<1, lanes_of<Vector>::size(), 1>(a, b, lanes_of<Vector>{});
}

// Lane i of the result: the sum of the lanes of rows[i]. Each round adds neighbours within two rows, which leaves one row:
// first within blocks of 16 bytes, then whole blocks, for that is what processors shuffle fastest.
template <int Rows, class Vector>
LAMBDA_ATTENTION_INLINE void add_neighbours(Vector* rows) {
  constexpr int lanes = lanes_of<Vector>::size();
  constexpr int block = lanes * 16 / vector_bytes;
  constexpr bool within_blocks = Rows > lanes / block;
  constexpr int unit = within_blocks ? 1 : block;
  constexpr int span = within_blocks ? block : lanes;
  LAMBDA_ATTENTION_UNROLL
  for (index_t i = 0; i < Rows / 2; ++i) {
    const Vector a = rows[2 * i], b = rows[2 * i + 1];
    rows[i] = every_other_unit<unit, span, 0>(a, b, lanes_of<Vector>{}) +
              every_other_unit<unit, span, 1>(a, b, lanes_of<Vector>{});
  }
  if constexpr (Rows > 2) add_neighbours<Rows / 2>(rows);
}
template <class Vector, std::size_t Rows>
LAMBDA_ATTENTION_INLINE Vector sums_of_rows(const Vector (&rows)[Rows]) {
  static_assert(Rows == lanes_of<Vector>::size(), "a row for each lane");
  Vector sums[Rows];
  LAMBDA_ATTENTION_UNROLL
  for (std::size_t i = 0; i < Rows; ++i) sums[i] = rows[i];
  add_neighbours<static_cast<int>(Rows)>(sums);
  return sums[0];
}

// The sum of `Lanes` lanes, by halves; the copies become register moves.
template <class Real, int Lanes, class Vector>
LAMBDA_ATTENTION_INLINE Real sum_by_halves(Vector x) {
  if constexpr (Lanes == 2) {
    return x[0] + x[1];
  } else {
    typedef Real half_vector __attribute__((vector_size(Lanes / 2 * sizeof(Real))));
    half_vector low, high;
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const unsigned char*>(&x) + sizeof low, sizeof high);
    return sum_by_halves<Real, Lanes / 2>(low + high);
  }
}

template <class Real>
LAMBDA_ATTENTION_INLINE Real sum_of_lanes(vector_of<Real> x) {
  return sum_by_halves<Real, vectors<Real>::lanes>(x);
}

template <class Real>
LAMBDA_ATTENTION_INLINE Real max_of_lanes(vector_of<Real> x) {
  alignas(vector_bytes) Real lane[vectors<Real>::lanes];
  store(lane, x);
  Real most = lane[0];
  for (int i = 1; i < vectors<Real>::lanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
}

// Minimax polynomials of 2^f on |f| <= 1/2: relative errors 1.2e-7 (float, its constant rounded up) and 2.2e-16.
LAMBDA_ATTENTION_INLINE vector_of<float> exp2_of_fraction(vector_of<float> f) {
  vector_of<float> p = broadcast(1.3276472e-3f);
  p = fused(p, f, broadcast(9.6755413e-3f));
  p = fused(p, f, broadcast(5.5507133e-2f));
  p = fused(p, f, broadcast(2.4022120e-1f));
  p = fused(p, f, broadcast(6.9314697e-1f));
  return fused(p, f, broadcast(1.0000001f));
}
LAMBDA_ATTENTION_INLINE vector_of<double> exp2_of_fraction(vector_of<double> f) {
  vector_of<double> p = broadcast(7.0372788467269009e-09);
  p = fused(p, f, broadcast(1.0208537929657404e-07));
  p = fused(p, f, broadcast(1.3215662835959239e-06));
  p = fused(p, f, broadcast(1.5252658116409855e-05));
  p = fused(p, f, broadcast(1.5403529961127076e-04));
  p = fused(p, f, broadcast(1.3333558228561766e-03));
  p = fused(p, f, broadcast(9.6181291080345970e-03));
  p = fused(p, f, broadcast(5.5504108664458831e-02));
  p = fused(p, f, broadcast(2.4022650695908768e-01));
  p = fused(p, f, broadcast(6.9314718055994978e-01));
  return fused(p, f, broadcast(1.0));
}

// 2^x for x up to about 100; zero below lowest_power; a NaN stays one.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> exp2(vector_of<Real> x) {
  x = power_in_range(x);
  const vector_of<Real> n = round_to_whole(x);
  return scale_by_power(exp2_of_fraction(x - n), n);
}

// x * scale, for a scale of at most one; zero where that is below `lowest`, which is a normal number.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> scaled_down(vector_of<Real> x, vector_of<Real> scale, Real lowest) {
  const vector_of<Real> least = lowest / maximum(broadcast(lowest), scale);
  const mask_of<Real> vanishes = (x < least) & (x > -least);
  return (vanishes ? broadcast(Real(0)) : x) * scale;
}

// 2^n for a whole n up to about 100, exactly; zero below lowest_power.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> exp2_of_whole(vector_of<Real> n) {
  return scale_by_power(broadcast(Real(1)), power_in_range(n));
}

// Minimax polynomials of (2^f - 1) / f on |f| <= 1/2: relative error of 2^f 1.9e-9 and 4e-20. Good to the last bit around
// 0 too, where a difference is wanted.
LAMBDA_ATTENTION_INLINE vector_of<float> exp2_slope(vector_of<float> f) {
  vector_of<float> p = broadcast(1.5345812e-4f);
  p = fused(p, f, broadcast(1.3399931e-3f));
  p = fused(p, f, broadcast(9.6184891e-3f));
  p = fused(p, f, broadcast(5.5503286e-2f));
  p = fused(p, f, broadcast(2.4022646e-1f));
  return fused(p, f, broadcast(6.9314718e-1f));
}
LAMBDA_ATTENTION_INLINE vector_of<double> exp2_slope(vector_of<double> f) {
  vector_of<double> p = broadcast(2.562340929327394e-11);
  p = fused(p, f, broadcast(4.456627704570346e-10));
  p = fused(p, f, broadcast(7.054976872321602e-09));
  p = fused(p, f, broadcast(1.017805152016458e-07));
  p = fused(p, f, broadcast(1.3215486584465597e-06));
  p = fused(p, f, broadcast(1.525273385547638e-05));
  p = fused(p, f, broadcast(1.5403530393662152e-04));
  p = fused(p, f, broadcast(1.3333558146391244e-03));
  p = fused(p, f, broadcast(9.618129107628309e-03));
  p = fused(p, f, broadcast(5.5504108664821694e-02));
  p = fused(p, f, broadcast(2.4022650695910072e-01));
  return fused(p, f, broadcast(6.931471805599453e-01));
}

// 2^x - 1 for |x| <= 100, to full relative precision around 0.
template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> exp2_minus_1(vector_of<Real> x) {
  const vector_of<Real> n = round_to_whole(x);
  const vector_of<Real> f = x - n;
  const vector_of<Real> power = scale_by_power(broadcast(Real(1)), n);
  return fused(power, exp2_slope(f) * f, power - Real(1));
}

template <class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> tanh(vector_of<Real> x) {
  constexpr Real flat = 22;  // 1 - tanh(22) is below half an ulp of 1, in double too
  x = maximum(broadcast(-flat), x);
  x = x > flat ? broadcast(flat) : x;
  const vector_of<Real> e = exp2_minus_1<Real>(x * Real(2 * log2_e));
  return e / (e + Real(2));
}
