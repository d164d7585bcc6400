// Rows: rotation, and reading and writing the built-in element types. Included by kernel_text.inl.

// sin(2 pi x) / x and cos(2 pi x) as polynomials of x^2, |x| <= 1/8: errors 3e-9 and 5e-14 (float), below 1e-19 (double).
LAMBDA_ATTENTION_INLINE vector_of<float> sine_slope(vector_of<float> xx) {
  vector_of<float> p = broadcast(41.46989059f);
  p = fused(p, xx, broadcast(-76.69777679f));
  p = fused(p, xx, broadcast(81.60520172f));
  p = fused(p, xx, broadcast(-41.34170151f));
  return fused(p, xx, broadcast(6.28318548f));
}
LAMBDA_ATTENTION_INLINE vector_of<double> sine_slope(vector_of<double> xx) {
  vector_of<double> p = broadcast(0.10338403023114502);
  p = fused(p, xx, broadcast(-0.71809749301384));
  p = fused(p, xx, broadcast(3.819952191690532));
  p = fused(p, xx, broadcast(-15.094642573188725));
  p = fused(p, xx, broadcast(42.0586939448779));
  p = fused(p, xx, broadcast(-76.70585975306132));
  p = fused(p, xx, broadcast(81.60524927607506));
  p = fused(p, xx, broadcast(-41.34170224039976));
  return fused(p, xx, broadcast(6.283185307179586));
}
LAMBDA_ATTENTION_INLINE vector_of<float> cosine(vector_of<float> xx) {
  vector_of<float> p = broadcast(-26.05817604f);
  p = fused(p, xx, broadcast(60.23818588f));
  p = fused(p, xx, broadcast(-85.45676422f));
  p = fused(p, xx, broadcast(64.93939209f));
  p = fused(p, xx, broadcast(-19.73920822f));
  return fused(p, xx, broadcast(1.0f));
}
LAMBDA_ATTENTION_INLINE vector_of<double> cosine(vector_of<double> xx) {
  vector_of<double> p = broadcast(0.2794587861271343);
  p = fused(p, xx, broadcast(-1.7143161950894439));
  p = fused(p, xx, broadcast(7.903535194944637));
  p = fused(p, xx, broadcast(-26.426256772547838));
  p = fused(p, xx, broadcast(60.24464137181812));
  p = fused(p, xx, broadcast(-85.45681720669354));
  p = fused(p, xx, broadcast(64.9393940226683));
  p = fused(p, xx, broadcast(-19.739208802178716));
  return fused(p, xx, broadcast(1.0));
}

LAMBDA_ATTENTION_INLINE bits_of_lanes<double> load_phases(const std::uint64_t* source) {
  bits_of_lanes<double> phases;
  std::memcpy(&phases, source, sizeof phases);
  return phases;
}

// The leading bits, as many as a Real has, of position * turns[0 ... lanes).
template <class Real>
LAMBDA_ATTENTION_INLINE bits_of_lanes<Real> leading_phase_bits(const std::uint64_t* turns, std::uint64_t position) {
  const bits_of_lanes<double> phase = load_phases(turns) * position;
  if constexpr (sizeof(Real) == sizeof(double)) {
    return phase;
  } else {
    const bits_of_lanes<double> more = load_phases(turns + vectors<double>::lanes) * position;
    return even_lanes((bits_of_lanes<Real>)(phase >> 32), (bits_of_lanes<Real>)(more >> 32));
  }
}

// For each of `count` positions factor * cos of every pair's angle, then factor * sin, both num_pairs rounded up to
// row_multiple. The leading bits of a 64-bit turn phase say which quarter turn is nearest; shifted out, they leave the
// signed rest, at most 1/8 turn.
template <class Real>
void cos_sin(const rotation_data& rotation, std::uint64_t first, index_t count, Real* angles) {
  constexpr int lanes = vectors<Real>::lanes;
  constexpr int bits = 8 * static_cast<int>(sizeof(Real));
  constexpr Real turns_per_unit = bits == 32 ? Real(0x1p-34) : Real(0x1p-66);
  const Real factor = static_cast<Real>(rotation.factor);
  const index_t padded_pairs = (rotation.num_pairs + row_multiple - 1) / row_multiple * row_multiple;
  alignas(vector_bytes) std::uint64_t turns[max_head_dim / 2];
  std::memcpy(turns, rotation.turns, static_cast<std::size_t>(rotation.num_pairs) * sizeof(std::uint64_t));
  for (index_t p = rotation.num_pairs; p < padded_pairs; ++p) turns[p] = 0;

  for (index_t i = 0; i < count; ++i, angles += 2 * padded_pairs) {
    const std::uint64_t position = first + static_cast<std::uint64_t>(i);
    for (index_t p = 0; p < padded_pairs; p += lanes) {
      const bits_of_lanes<Real> phase = leading_phase_bits<Real>(turns + p, position);
      const bits_of_lanes<Real> quarter = (phase + ((bits_of_lanes<Real>{} + 1) << (bits - 3))) >> (bits - 2);
      const mask_of<Real> rest = (mask_of<Real>)(phase << 2);
      const vector_of<Real> x = __builtin_convertvector(rest, vector_of<Real>) * turns_per_unit;
      const vector_of<Real> xx = x * x;
      const vector_of<Real> sine_of_rest = sine_slope(xx) * x;
      const vector_of<Real> cosine_of_rest = cosine(xx);
      const mask_of<Real> odd = (quarter & 1) != 0;
      const vector_of<Real> c = odd ? sine_of_rest : cosine_of_rest;
      const vector_of<Real> s = odd ? cosine_of_rest : sine_of_rest;
      const bits_of_lanes<Real> c_sign = ((quarter + 1) & 2) << (bits - 2);
      const bits_of_lanes<Real> s_sign = (quarter & 2) << (bits - 2);
      store(angles + p, (vector_of<Real>)((bits_of_lanes<Real>)c ^ c_sign) * factor);
      store(angles + padded_pairs + p, (vector_of<Real>)((bits_of_lanes<Real>)s ^ s_sign) * factor);
    }
  }
}

// rotated = R row, by the angles of one position as cos_sin has left them. The two may not overlap.
template <class Real>
void rotate(const rotation_data& rotation, const Real* angles, index_t dim, const Real* __restrict row,
            Real* __restrict rotated) {
  constexpr index_t lanes = vectors<Real>::lanes;
  const index_t pairs = rotation.num_pairs;
  const Real* const cosines = angles;
  const Real* const sines = angles + (pairs + row_multiple - 1) / row_multiple * row_multiple;
  if (rotation.layout == pair_layout::half_split) {
    index_t p = 0;
    for (; p + lanes <= pairs; p += lanes) {
      const vector_of<Real> a = load_loose(row + p), b = load_loose(row + pairs + p);
      const vector_of<Real> c = load(cosines + p), s = load(sines + p);
      store_loose(rotated + p, fused(a, c, -(b * s)));
      store_loose(rotated + pairs + p, fused(b, c, a * s));
    }
    for (; p < pairs; ++p) {
      const Real a = row[p], b = row[pairs + p];
      rotated[p] = a * cosines[p] - b * sines[p];
      rotated[pairs + p] = b * cosines[p] + a * sines[p];
    }
  } else {
    for (index_t p = 0; p < pairs; ++p) {
      const Real a = row[2 * p], b = row[2 * p + 1];
      rotated[2 * p] = a * cosines[p] - b * sines[p];
      rotated[2 * p + 1] = b * cosines[p] + a * sines[p];
    }
  }
  for (index_t d = 2 * pairs; d < dim; ++d) rotated[d] = row[d];
}

// A vector of numbers from the bytes of a row; where the format has a scale, it is not yet applied.
template <row_format Format, class Real>
LAMBDA_ATTENTION_INLINE vector_of<Real> load_stored(const unsigned char* source) {
  if constexpr (Format == row_format::f32 || Format == row_format::f64) {
    return load_loose(reinterpret_cast<const Real*>(source));
  } else if constexpr (Format == row_format::f16) {
    return load_f16(source);
  } else if constexpr (Format == row_format::bf16) {
    return load_bf16(source);
  } else {
    static_assert(Format == row_format::int8, "a stored format that kernels read");
    return load_int8(source);
  }
}

template <row_format Format>
inline constexpr index_t element_bytes = Format == row_format::f64                                 ? 8
                                         : Format == row_format::f32                               ? 4
                                         : Format == row_format::f16 || Format == row_format::bf16 ? 2
                                                                                                   : 1;

template <row_format Format, class Real>
void read_elements(const unsigned char* source, index_t count, Real scale, Real* row) {
  constexpr index_t lanes = vectors<Real>::lanes;
  constexpr index_t bytes = element_bytes<Format>;
  index_t i = 0;
  for (; i + lanes <= count; i += lanes) store_loose(row + i, load_stored<Format, Real>(source + i * bytes) * scale);
  if (i == count) return;
  unsigned char rest[vector_bytes] = {};
  std::memcpy(rest, source + i * bytes, static_cast<std::size_t>((count - i) * bytes));
  const vector_of<Real> numbers = load_stored<Format, Real>(rest) * scale;
  std::memcpy(row + i, &numbers, static_cast<std::size_t>(count - i) * sizeof(Real));
}

// row = the `count` elements at `source`, each times `scale`. The format is a built-in one; for kernels that compute in
// double, any of float, double, half and bfloat16.
template <class Real>
void read_row(row_format format, const void* source, index_t count, Real scale, Real* row) {
  const unsigned char* const bytes = static_cast<const unsigned char*>(source);
  if constexpr (sizeof(Real) == 4) {
    if (format == row_format::f32) return read_elements<row_format::f32>(bytes, count, scale, row);
    if (format == row_format::f16) return read_elements<row_format::f16>(bytes, count, scale, row);
    if (format == row_format::bf16) return read_elements<row_format::bf16>(bytes, count, scale, row);
    if (format == row_format::int8) return read_elements<row_format::int8>(bytes, count, scale, row);
    const double* const numbers = static_cast<const double*>(source);
    for (index_t i = 0; i < count; ++i) row[i] = static_cast<float>(numbers[i]) * scale;
  } else {
    if (format == row_format::f64) return read_elements<row_format::f64>(bytes, count, scale, row);
    alignas(64) float chunk[64];
    for (index_t i = 0; i < count; i += 64) {
      const index_t size = count - i < 64 ? count - i : 64;
      read_row<float>(format, bytes + i * (format == row_format::f32 ? 4 : 2), size, 1.0f, chunk);
      for (index_t j = 0; j < size; ++j) row[i + j] = static_cast<double>(chunk[j]) * scale;
    }
  }
}

// The bits of numbers rounded to 16, in the lower halves of the lanes; see half_bits and bfloat16_bits.
template <row_format Format>
LAMBDA_ATTENTION_INLINE bits_of_lanes<float> rounded_to_16_bits(vector_of<float> x) {
  using bits = bits_of_lanes<float>;
  using numbers = mask_of<float>;
  const bits all = (bits)x;
  const bits magnitude = all & 0x7fffffffU;
  const mask_of<float> is_nan = (numbers)magnitude > 0x7f800000;
  if constexpr (Format == row_format::bf16) {
    return is_nan ? (all >> 16) | 0x40U : (all + 0x7fffU + ((all >> 16) & 1U)) >> 16;
  } else {
    const bits normal = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    const bits small = (bits)((vector_of<float>)magnitude + 0.5f) - (bits)broadcast(0.5f);
    bits half = (numbers)magnitude < 0x38800000 ? small : normal;
    half = (numbers)magnitude >= 0x477ff000 ? bits{} + 0x7c00U : half;
    half = is_nan ? ((magnitude >> 13) & 0x1ffU) | 0x7e00U : half;
    return ((all >> 16) & 0x8000U) | half;
  }
}

// The first numbers of a row, at most `count`, and zeros.
LAMBDA_ATTENTION_INLINE vector_of<float> load_part(const float* row, index_t count) {
  constexpr index_t lanes = vectors<float>::lanes;
  if (count >= lanes) return load_loose(row);
  vector_of<float> part = {};
  std::memcpy(&part, row, static_cast<std::size_t>(count) * sizeof(float));
  return part;
}

template <row_format Format>
void write_16_bits(const float* row, index_t count, unsigned char* destination) {
  constexpr index_t lanes = vectors<float>::lanes;
  typedef std::uint16_t numbers __attribute__((vector_size(lanes * 2)));
  for (index_t i = 0; i < count; i += lanes) {
    const index_t size = count - i < lanes ? count - i : lanes;
    const vector_of<float> x = load_part(row + i, size);
    const numbers narrow = __builtin_convertvector(rounded_to_16_bits<Format>(x), numbers);
    std::memcpy(destination + 2 * i, &narrow, static_cast<std::size_t>(size) * 2);
  }
}

// Signed bytes and their scale, those of storage int8, bit for bit. Magnitudes are compared as whole numbers: as such an
// infinity and NaNs are above all others.
inline float write_int8(const float* row, index_t count, signed char* bytes) {
  constexpr index_t lanes = vectors<float>::lanes;
  constexpr std::int32_t infinity_bits = 0x7f800000;
  typedef signed char numbers __attribute__((vector_size(lanes)));
  mask_of<float> most = {};
  for (index_t i = 0; i < count; i += lanes) {
    const mask_of<float> magnitude = (mask_of<float>)load_part(row + i, count - i) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  std::int32_t largest_bits = 0;
  for (int l = 0; l < lanes; ++l) largest_bits = most[l] > largest_bits ? most[l] : largest_bits;
  const bool finite = largest_bits < infinity_bits;
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float scale = finite ? int8_scale(largest) : 0;
  for (index_t i = 0; i < count; i += lanes) {
    const vector_of<float> quotient =
        scale == 0 ? broadcast(finite ? 0.0f : 1.0f) : load_part(row + i, count - i) / scale;
    // The last bits of the sum are the nearest whole number.
    constexpr float shift = 0x1.8p23f;
    constexpr std::int32_t bits_of_shift = 0x4b400000;
    const mask_of<float> whole = (mask_of<float>)(quotient + shift) - bits_of_shift;
    const numbers narrow = __builtin_convertvector(whole, numbers);
    std::memcpy(bytes + i, &narrow, static_cast<std::size_t>(count - i < lanes ? count - i : lanes));
  }
  return finite ? scale : __builtin_nanf("");
}

// The reverse of read_row, rounding to nearest. Returns the scale, 1 in formats that have none. int8 is of floats only.
template <class Real>
float write_row(row_format format, const Real* row, index_t count, void* destination) {
  if (format == (sizeof(Real) == 4 ? row_format::f32 : row_format::f64)) {
    std::memcpy(destination, row, static_cast<std::size_t>(count) * sizeof(Real));
  } else if (format == row_format::f32) {
    float* const numbers = static_cast<float*>(destination);
    for (index_t i = 0; i < count; ++i) numbers[i] = static_cast<float>(row[i]);
  } else if (format == row_format::f64) {
    double* const numbers = static_cast<double*>(destination);
    for (index_t i = 0; i < count; ++i) numbers[i] = static_cast<double>(row[i]);
  } else if constexpr (sizeof(Real) == sizeof(float)) {
    unsigned char* const bytes = static_cast<unsigned char*>(destination);
    if (format == row_format::int8) return write_int8(row, count, static_cast<signed char*>(destination));
    if (format == row_format::f16) {
      write_16_bits<row_format::f16>(row, count, bytes);
    } else {
      write_16_bits<row_format::bf16>(row, count, bytes);
    }
  } else {
    std::uint16_t* const bits = static_cast<std::uint16_t*>(destination);
    for (index_t i = 0; i < count; ++i) {
      const float number = static_cast<float>(row[i]);
      bits[i] = format == row_format::f16 ? half_bits(number) : bfloat16_bits(number);
    }
  }
  return 1;
}
