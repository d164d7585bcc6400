// A stream's past as bytes: what kv_cache::save() writes and load() takes in.
//
//     byte 0     "lambdaKV"                                   all numbers little-endian
//          8     the other fields of cache_file_header, the last a checksum of all before it
//        152     the rows: one KV head after the other, of each its sinks, its window, and so on, the oldest first
//
// Only what queries to come may see is written, by token, not by slot: a cache whose rings are longer or shorter can take it
// in. The functions below know a stream by its members alone, so that who does not use them need not include <iostream>.
#pragma once

#include <lambda_attention/config.hpp>
#include <lambda_attention/detail/cache_core.hpp>
#include <lambda_attention/position.hpp>

#include <cstdint>
#include <cstring>
#include <utility>

namespace lambda_attention {
inline namespace LAMBDA_ATTENTION_UNIT {
namespace detail {

// A number that tells one run of bytes from another. Each step is one-to-one in the state and in the word, so that a change of
// a single word always shows.
class checksum {
 public:
  // A whole number of 32-bit words. Where one call ends and the next begins makes no difference.
  void add(const void* bytes, index_t count) {
    const unsigned char* const begin = static_cast<const unsigned char*>(bytes);
    for (index_t i = 0; i < count; i += 4) {
      std::uint32_t word;
      std::memcpy(&word, begin + i, sizeof word);
      state_ = (state_ ^ word) * 0x9e3779b97f4a7c15u;
      state_ = state_ << 23 | state_ >> 41;
    }
  }
  template <class Number>
  void add(const Number& number) {
    add(&number, static_cast<index_t>(sizeof number));
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x243f6a8885a308d3u;
};

// Tells encodings apart. Another processor may compute frequencies whose last bits differ: those are left out, so that it finds
// the same number, but for one turn in 10^7 or so that lies at the edge where it is rounded.
inline std::uint64_t fingerprint(const position_data& encoding, index_t num_heads) {
  checksum sum;
  const rotation_data& rotation = encoding.rotation;
  sum.add(rotation.num_pairs);
  for (index_t p = 0; p < rotation.num_pairs; ++p) sum.add((rotation.turns[p] + 0x800000u) >> 24);
  if (rotation.num_pairs > 0) {
    sum.add(rotation.layout);
    sum.add(static_cast<float>(rotation.factor));
  }
  sum.add(std::uint32_t{encoding.has_function()});
  sum.add(std::uint32_t{encoding.slopes != nullptr});
  for (index_t h = 0; encoding.slopes != nullptr && h < num_heads; ++h) sum.add(static_cast<float>(encoding.slopes[h]));
  if (encoding.biases != nullptr) {
    const bias_table& biases = *encoding.biases;
    sum.add(biases.num_distances());
    for (index_t h = 0; h < biases.num_heads(); ++h)
      sum.add(biases.row(h, float()), biases.num_distances() * static_cast<index_t>(sizeof(float)));
  }
  return sum.value();
}

// Fields of 64 bits each: no byte between them is padding. Bytes are written as they lie in memory: machines whose order is
// another are refused in kernels.hpp.
struct cache_file_header {
  std::uint64_t magic;
  std::uint64_t version;
  // As in the cache that is to take the stream in.
  std::uint64_t num_sinks;
  std::uint64_t window;
  std::uint64_t distance_limit;
  std::uint64_t sinks_at;
  std::uint64_t num_kv_heads;
  std::uint64_t head_dim;
  std::uint64_t v_head_dim;
  std::uint64_t first_position;
  std::uint64_t format;
  std::uint64_t sink_number_bytes;
  std::uint64_t key_row_bytes;
  std::uint64_t value_row_bytes;
  std::uint64_t encoding;
  // The stream's own.
  std::uint64_t num_tokens;
  std::uint64_t newest_held;
  std::uint64_t sum_of_rows;
  std::uint64_t sum_of_header;

  std::uint64_t computed_sum() const {
    checksum sum;
    sum.add(this, static_cast<index_t>(sizeof *this - sizeof sum_of_header));
    return sum.value();
  }
};
inline constexpr char cache_file_magic[] = "lambdaKV";
inline constexpr std::uint64_t cache_file_version = 1;

// What numbers a file and a cache have to have in common, and what a refusal calls them.
struct named_field {
  const char* name;
  std::uint64_t cache_file_header::*number;
};
inline constexpr named_field fields_in_common[] = {
    {"num_sinks", &cache_file_header::num_sinks},
    {"window", &cache_file_header::window},
    {"distance_limit", &cache_file_header::distance_limit},
    {"sinks_at", &cache_file_header::sinks_at},
    {"num_kv_heads", &cache_file_header::num_kv_heads},
    {"head_dim", &cache_file_header::head_dim},
    {"v_head_dim", &cache_file_header::v_head_dim},
    {"first_position", &cache_file_header::first_position},
    {"row_format", &cache_file_header::format},
    {"bytes of a sink's number", &cache_file_header::sink_number_bytes},
    {"bytes of a row of keys", &cache_file_header::key_row_bytes},
    {"bytes of a row of values", &cache_file_header::value_row_bytes},
};

template <class Real>
cache_file_header header_of(const cache_core<Real>& cache, std::uint64_t encoding) {
  const auto& geometry = cache.shape();
  const lambda_shape& shape = geometry.plan.shape;
  const auto field = [](auto number) { return static_cast<std::uint64_t>(number); };
  cache_file_header header = {};
  std::memcpy(&header.magic, cache_file_magic, sizeof header.magic);
  header.version = cache_file_version;
  header.num_sinks = field(shape.num_sinks);
  header.window = field(shape.window);
  header.distance_limit = field(shape.distance_limit);
  header.sinks_at = field(shape.sinks_at);
  header.num_kv_heads = field(geometry.num_kv_heads);
  header.head_dim = field(geometry.head_dim);
  header.v_head_dim = field(geometry.v_head_dim);
  header.first_position = field(geometry.first_position);
  header.format = field(cache.format());
  header.sink_number_bytes = sizeof(Real);
  header.key_row_bytes = field(cache.key_row_bytes());
  header.value_row_bytes = field(cache.value_row_bytes());
  header.encoding = encoding;
  header.num_tokens = field(cache.num_tokens());
  header.newest_held = field(cache.newest_held());
  return header;
}

template <class Real, class Stream>
void save_cache(const cache_core<Real>& cache, std::uint64_t encoding, Stream& out) {
  cache_file_header header = header_of(cache, encoding);
  index_t num_bytes = sizeof header;
  const auto for_each_run = [&](auto&& visit) {
    cache.for_each_run(cache.blocks(), cache.num_tokens(), cache.newest_held(), visit);
  };
  checksum sum;
  for_each_run([&](const unsigned char* bytes, index_t count) {
    sum.add(bytes, count);
    num_bytes += count;
  });
  header.sum_of_rows = sum.value();
  header.sum_of_header = header.computed_sum();
  const auto write = [&](const void* bytes, index_t count) { out.write(static_cast<const char*>(bytes), count); };
  write(&header, sizeof header);
  for_each_run(write);
  out.flush();  // or a full disk would show when nobody looks any more
  if (!out) refuse("save: expected a stream that takes %lld bytes, got one that failed", printable(num_bytes));
}

// A header as it was written, of a stream that the cache can take in.
inline void check_header(const cache_file_header& header, const cache_file_header& own) {
  if (header.magic != own.magic) refuse("load: expected a saved kv_cache, got other bytes");
  if (header.version != own.version)
    refuse("load: expected version %lld of the format, got %lld", printable(static_cast<index_t>(own.version)),
           printable(static_cast<index_t>(header.version)));
  if (header.sum_of_header != header.computed_sum())
    refuse("load: expected a header as it was written, got a corrupted one: its checksum is another");
  for (const named_field& field : fields_in_common)
    if (header.*field.number != own.*field.number)
      refuse("load: expected %s = %lld, that of the cache, got %lld in the file", field.name,
             printable(static_cast<index_t>(own.*field.number)), printable(static_cast<index_t>(header.*field.number)));
  if (header.encoding != own.encoding)
    refuse("load: expected keys of the cache's position encoding, got those of another");
  const std::uint64_t to_the_end = static_cast<std::uint64_t>(unlimited) - own.first_position;
  const std::uint64_t most = to_the_end < most_stream_tokens ? to_the_end : most_stream_tokens;
  if (header.num_tokens > most || header.newest_held > header.num_tokens)
    refuse("load: expected at most %lld tokens, and as many or fewer to take back, got %lld and %lld",
           printable(static_cast<index_t>(most)), printable(static_cast<index_t>(header.num_tokens)),
           printable(static_cast<index_t>(header.newest_held)));
}

template <class Real, class Stream>
void load_cache(cache_core<Real>& cache, std::uint64_t encoding, Stream& in) {
  const auto read = [&](void* bytes, index_t count, const char* of) {
    in.read(static_cast<char*>(bytes), count);
    if (in.gcount() != count || !in)
      refuse("load: expected %lld bytes %s, got %lld: the stream ends, or failed", printable(count), of,
             printable(static_cast<index_t>(in.gcount())));
  };
  cache_file_header header;
  read(&header, sizeof header, "of a header");
  check_header(header, header_of(cache, encoding));
  const index_t num_tokens = static_cast<index_t>(header.num_tokens);
  const index_t newest_held = static_cast<index_t>(header.newest_held);

  cache_core<Real> loaded = cache;
  checksum sum;
  loaded.for_each_run(loaded.blocks(), num_tokens, newest_held, [&](unsigned char* bytes, index_t count) {
    read(bytes, count, "of rows");
    sum.add(bytes, count);
  });
  if (sum.value() != header.sum_of_rows)
    refuse("load: expected rows as they were written, got corrupted ones: their checksum is another");
  loaded.restore(num_tokens, newest_held);
  cache = std::move(loaded);
}

}  // namespace detail
}  // namespace LAMBDA_ATTENTION_UNIT
}  // namespace lambda_attention
