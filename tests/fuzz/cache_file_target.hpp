// Files that anyone may have written, given to load(): they are refused, and the cache is as it was, or become a stream that
// can be used. And changes of such files, which half of the time have the checksums that they should have.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/int8.hpp>

#include <support/random_tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "input.hpp"

namespace fuzz {

using lambda_attention::kv_cache;
using lambda_attention::kv_cache_options;
using lambda_attention::lambda_shape;
using support::tensor;

/// What a file did to a cache.
enum class loading { refused, loaded };

/// One kind of cache, a file of which is small.
template <class Storage, class Position>
class cache_kind {
 public:
  cache_kind(const lambda_shape& shape, Position position, index_t first_position = 0)
      : shape_(shape), position_(std::move(position)), first_position_(first_position) {}

  /// The file of a stream that had `most` tokens, of which `back` were then taken back.
  std::string file(index_t most, index_t back) const {
    cache saved = fed({4, 3, first_position_}, most, 1);
    saved.rewind(back);
    return bytes_of(saved);
  }

  /// Loads bytes into a cache whose rings are those of the one above (0), longer (1) or shorter (2).
  loading load(std::string_view bytes, index_t rings) const {
    constexpr index_t max_append[] = {4, 9, 1}, max_rewind[] = {3, 5, 0};
    cache c = fed({max_append[rings], max_rewind[rings], first_position_}, 7, 2);
    const std::string before = bytes_of(c);
    const index_t size = c.bytes();
    std::istringstream stream{std::string(bytes)};
    try {
      c.load(stream);
    } catch (const std::invalid_argument& refusal) {
      if (std::string(refusal.what()).rfind("load: expected ", 0) != 0)
        throw failure("expected words of a refusal, got " + std::string(refusal.what()));
      if (bytes_of(c) != before) throw failure("expected a refused file to leave the cache as it was");
      use(c);
      return loading::refused;
    }
    if (c.bytes() != size) throw failure("expected a loaded cache to be as large as before");
    use(c);
    return loading::loaded;
  }

 private:
  using cache = kv_cache<Storage, Position>;
  using real = typename Storage::compute_type;
  static constexpr index_t heads = 4, kv_heads = 2, head_dim = 4, v_head_dim = 3;

  struct rows {
    rows(index_t tokens, numbers& random)
        : q(tokens, heads, head_dim),
          k(tokens, kv_heads, head_dim),
          v(tokens, kv_heads, v_head_dim),
          out(tokens, heads, v_head_dim) {
      for (tensor<float>* t : {&q, &k, &v})
        support::for_each_element(t->view(), [&](float& x) { x = static_cast<float>(random.within(2)); });
    }
    tensor<float> q, k, v;
    tensor<real> out;
  };

  static void take_in(cache& c, index_t tokens, numbers& random) {
    rows r(tokens, random);
    attend(r.q.view(), r.k.view(), r.v.view(), c, r.out.view());
  }

  cache fed(const kv_cache_options& rings, index_t tokens, std::uint64_t seed) const {
    cache c(shape_, position_, kv_heads, head_dim, v_head_dim, rings);
    numbers random(seed);
    for (; tokens > 0; --tokens) take_in(c, 1, random);
    return c;
  }

  static std::string bytes_of(const cache& c) {
    std::ostringstream file;
    c.save(file);
    return file.str();
  }

  // All that can be done with a stream. Its rows may be any numbers, and it may be as long as a stream can be.
  static void use(cache& c) {
    numbers random(3);
    const std::string file = bytes_of(c);
    cache other = c;
    std::istringstream stream(file);
    other.load(stream);
    if (bytes_of(other) != file) throw failure("expected a stream to be saved as it was loaded");
    bool grown = false;
    for (const index_t tokens : {index_t{1}, c.max_append(), c.max_append() + 2}) {
      const index_t before = c.num_tokens();
      try {
        take_in(c, tokens, random);
        grown = true;
      } catch (const std::invalid_argument&) {
        if (before <= std::min(index_t{1} << 62, unlimited - c.first_position()) - tokens) throw;
        if (c.num_tokens() != before) throw failure("expected a refused step to leave the cache as it was");
      }
    }
    rows newest(std::min<index_t>(c.num_tokens(), 1), random);
    try {
      attend(newest.q.view(), c, newest.out.view());
    } catch (const std::invalid_argument&) {  // what it saw was overwritten by tokens that were taken back
      if (grown) throw;
    }
    for (const index_t back : {9, 5, 3, 1}) {
      try {
        c.rewind(back);
        take_in(c, 1, random);
      } catch (const std::invalid_argument&) {  // gone from the rings, or past the last position
      }
    }
  }

  lambda_shape shape_;
  Position position_;
  index_t first_position_;
};

/// Calls use(kind) with the kind of that number.
inline constexpr index_t num_cache_kinds = 5;
template <class Use>
auto with_cache_kind(index_t number, Use&& use) {
  using namespace lambda_attention;
  if (number == 0) return use(cache_kind<f32, rope>(lm_infinite(2, 5), rope(4)));
  if (number == 1) return use(cache_kind<int8, none>(sliding_window(6), none()));
  if (number == 2) return use(cache_kind<bf16, rope>({3, 8, 2}, rope(4), index_t{1} << 62));
  if (number == 3) return use(cache_kind<f32, rope>(streaming_llm(3, 4), rope(4), unlimited - 40));
  return use(cache_kind<int8, alibi>({2, 0, 3}, alibi(4)));
}

/// A file, and the cache that it is given to.
struct cache_file {
  index_t kind = 0;
  index_t rings = 0;
  std::string bytes;

  loading load() const {
    return with_cache_kind(kind, [&](const auto& k) { return k.load(bytes, rings); });
  }

  /// As a fuzzer's input: one byte, and the file.
  std::string joined() const { return static_cast<char>(kind + num_cache_kinds * rings) + bytes; }
  static cache_file from(std::string_view joined) {
    if (joined.empty()) return {};
    const index_t number = static_cast<unsigned char>(joined[0]) % (3 * num_cache_kinds);
    return {number % num_cache_kinds, number / num_cache_kinds, std::string(joined.substr(1))};
  }

  /// Whole, as a cache has written it.
  static cache_file whole(numbers& random) {
    cache_file file;
    file.kind = random.below(num_cache_kinds);
    file.rings = random.below(3);
    const index_t most = random.below(20), back = std::min(most, random.below(3));
    file.bytes = with_cache_kind(file.kind, [&](const auto& k) { return k.file(most, back); });
    return file;
  }
};

/// The checksums that a file should have, whatever it says.
inline void sum_anew(std::string& bytes) {
  using lambda_attention::detail::cache_file_header;
  cache_file_header header;
  if (bytes.size() < sizeof header) return;
  std::memcpy(&header, bytes.data(), sizeof header);
  const std::size_t rows = (bytes.size() - sizeof header) / 4 * 4;
  lambda_attention::detail::checksum sum;
  sum.add(bytes.data() + sizeof header, static_cast<index_t>(rows));
  header.sum_of_rows = sum.value();
  header.sum_of_header = header.computed_sum();
  std::memcpy(bytes.data(), &header, sizeof header);
}

/// Changes a file in a place or a few: fields of its header, bytes, its end.
inline void mutate(cache_file& file, numbers& random) {
  using lambda_attention::detail::cache_file_header;
  std::string& bytes = file.bytes;
  for (index_t changes = 1 + random.below(3); changes > 0; --changes) {
    const index_t kind = random.below(8), size = static_cast<index_t>(bytes.size());
    const std::size_t at = static_cast<std::size_t>(random.below(size + 1));
    const index_t fields = static_cast<index_t>(sizeof(cache_file_header)) / 8;
    if (kind == 0 && at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    if (kind == 1) bytes.resize(at);
    if (kind == 2) bytes.insert(at, static_cast<std::size_t>(random.below(64)), static_cast<char>(random.below(256)));
    if (kind == 3 && at < bytes.size()) {  // numbers that are none
      constexpr unsigned char patterns[] = {0x7f, 0xff, 0x80, 0x00, 0xc0, 0x7e};
      bytes[at] = static_cast<char>(patterns[random.below(6)]);
    }
    if (kind >= 4 && size >= fields * 8) {
      // The stream's own two most often: they are what is not compared with the cache.
      const index_t field = kind < 7 ? 15 + random.below(2) : random.below(fields);
      std::uint64_t number;
      std::memcpy(&number, bytes.data() + 8 * field, sizeof number);
      constexpr std::uint64_t edges[] = {0,          1,    2, 1ull << 31, 1ull << 32, 1ull << 61, (1ull << 62) - 1,
                                         1ull << 62, ~0ull};
      number =
          random.below(2) == 0 ? number + static_cast<std::uint64_t>(random.below(17) - 8) : edges[random.below(9)];
      std::memcpy(bytes.data() + 8 * field, &number, sizeof number);
    }
    if (random.below(16) == 0) file.rings = random.below(3);
    if (random.below(16) == 0) file.kind = random.below(num_cache_kinds);
  }
  if (random.below(2) == 0) sum_anew(bytes);
}

}  // namespace fuzz
