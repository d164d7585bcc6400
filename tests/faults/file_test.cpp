// Files that fail: a stream that takes so many bytes and no more, or gives so many, or throws; a disk that is full; a
// file in which any one bit is another.
#include <lambda_attention/lambda_attention.hpp>

#include <faults/streams.hpp>
#include <refusal.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <ios>
#include <sstream>
#include <streambuf>
#include <string>

namespace {

using namespace faults;

struct device_error {};

/// A device that takes, or gives, so many bytes before it fails, by itself or by throwing.
enum class failure { reported, thrown };
class device : public std::streambuf {
 public:
  device(std::size_t most, failure how, std::string bytes = "") : bytes_(std::move(bytes)), most_(most), how_(how) {}

  const std::string& written() const { return bytes_; }

 protected:
  int_type overflow(int_type c) override {
    if (bytes_.size() == most_) return fail();
    bytes_.push_back(traits_type::to_char_type(c));
    return c;
  }
  int_type underflow() override {
    if (num_read_ == std::min(most_, bytes_.size())) return fail();
    next_ = bytes_[num_read_++];
    setg(&next_, &next_, &next_ + 1);
    return traits_type::to_int_type(next_);
  }

 private:
  int_type fail() const {
    if (how_ == failure::thrown) throw device_error{};
    return traits_type::eof();
  }

  std::string bytes_;
  std::size_t most_;
  failure how_;
  std::size_t num_read_ = 0;
  char next_ = 0;
};

/// A device that takes all bytes and can keep none.
class device_that_cannot_flush : public std::stringbuf {
 protected:
  int sync() override { return -1; }
};

bool starts_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

// Small ones, for every byte is tried: three tokens of a window, one that was a sink.
template <class Use>
void for_each_small_cache(Use&& use) {
  constexpr int seed = 60;
  generator random(seed);
  const inputs<> in = random_inputs(random, {12, 1, 2, 4, 2});
  for_each_storage([&](auto storage, const char* name) {
    SCOPED_TRACE(name);
    const auto with = [&](const char* rings, const lambda_shape& shape, const some_encoding& position) {
      SCOPED_TRACE(rings);
      using cache = kv_cache<decltype(storage), some_encoding>;
      const auto after = [&](index_t tokens) {
        cache result(shape, position, 1, 4, 2, {2, 1});
        append(in.k.view().slice(0, tokens), in.v.view().slice(0, tokens), result);
        return result;
      };
      use(after(9), after(5));
    };
    with("sinks in two forms", lm_infinite(1, 3), some_encoding(rope(4)));
    with("two rings of keys", {1, 3, 1}, some_encoding(rope(4)));
    with("rotated sinks", streaming_llm(1, 3), some_encoding(rope(4)));
    with("alibi", lm_infinite(1, 3), some_encoding(alibi(2)));
    with("no encoding, no sinks", sliding_window(3), some_encoding());
  });
}

TEST(a_file_that_fails, is_a_refusal_of_save_at_any_byte) {
  for_each_small_cache([](const auto& cache, const auto&) {
    const std::string whole = saved_bytes(cache);
    const std::string refused =
        "save: expected a stream that takes " + std::to_string(whole.size()) + " bytes, got one that failed";
    for (std::size_t most = 0; most <= whole.size(); ++most) {
      SCOPED_TRACE(std::to_string(most) + " bytes");
      for (const failure how : {failure::reported, failure::thrown}) {
        device disk(most, how);
        std::ostream out(&disk);
        EXPECT_EQ(refusal([&] { cache.save(out); }), most < whole.size() ? refused : "accepted");
        EXPECT_TRUE(disk.written() == whole.substr(0, most));
      }
      // A stream that is told to throw does.
      device disk(most, failure::thrown);
      std::ostream out(&disk);
      out.exceptions(std::ios::badbit);
      if (most < whole.size()) {
        EXPECT_THROW(cache.save(out), device_error);
      } else {
        cache.save(out);
      }
    }
    EXPECT_TRUE(saved_bytes(cache) == whole);
  });
}

TEST(a_file_that_fails, is_a_refusal_of_save_when_it_is_flushed) {
  for_each_small_cache([](const auto& cache, const auto&) {
    device_that_cannot_flush disk;
    std::ostream out(&disk);
    EXPECT_TRUE(starts_with(refusal([&] { cache.save(out); }), "save: expected a stream that takes "));
    EXPECT_TRUE(disk.str() == saved_bytes(cache));
  });
}

// A file that a stream keeps in its own buffer until it is flushed, and one that is longer.
TEST(a_file_that_fails, is_a_refusal_of_save_on_a_full_disk) {
  for (const index_t window : {2, 2000}) {
    std::fstream full("/dev/full", std::ios::in | std::ios::out | std::ios::binary);
    if (!full) GTEST_SKIP() << "no /dev/full";
    kv_cache<f32, none> cache(sliding_window(window), {}, 1, 4, 4, {1});
    const tensor<float> rows(2000, 1, 4);
    append(rows.view(), rows.view(), cache);
    EXPECT_TRUE(starts_with(refusal([&] { cache.save(full); }), "save: expected a stream that takes ")) << window;
  }
}

TEST(a_file_that_fails, is_a_refusal_of_load_at_any_byte) {
  for_each_small_cache([](const auto& original, const auto& before) {
    const std::string whole = saved_bytes(original), own = saved_bytes(before);
    auto cache = before;
    const auto load = [&](std::size_t bytes, failure how, std::ios::iostate that_throw) {
      device disk(bytes, how, whole);
      std::istream in(&disk);
      in.exceptions(that_throw);
      cache.load(in);
    };
    for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
      SCOPED_TRACE(std::to_string(bytes) + " bytes");
      for (const failure how : {failure::reported, failure::thrown}) {
        const std::string message = refusal([&] { load(bytes, how, std::ios::goodbit); });
        EXPECT_TRUE(
            starts_with(message, bytes < 152 ? "load: expected 152 bytes of a header, got " : "load: expected "));
        EXPECT_NE(message.find(": the stream ends, or failed"), std::string::npos) << message;
      }
      EXPECT_THROW(load(bytes, failure::reported, std::ios::failbit), std::ios::failure);
      EXPECT_THROW(load(bytes, failure::thrown, std::ios::badbit), device_error);
      ASSERT_TRUE(saved_bytes(cache) == own);
    }
    // Byte by byte, to the last.
    load(whole.size(), failure::thrown, std::ios::badbit);
    EXPECT_TRUE(saved_bytes(cache) == whole);
  });
}

// There is no bit that does not matter: each is told of, and the cache goes on with its own.
TEST(a_file_with_a_wrong_bit, is_refused) {
  index_t num_files = 0;
  for_each_small_cache([&](const auto& original, const auto& before) {
    const std::string whole = saved_bytes(original), own = saved_bytes(before);
    auto cache = before;
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit, ++num_files) {
      std::string flipped = whole;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
      std::istringstream file(flipped);
      EXPECT_TRUE(starts_with(refusal([&] { cache.load(file); }), "load: expected ")) << "bit " << bit;
      ASSERT_TRUE(saved_bytes(cache) == own) << "bit " << bit;
    }
    std::istringstream file(whole);
    cache.load(file);
    EXPECT_TRUE(saved_bytes(cache) == whole);
  });
  RecordProperty("files", std::to_string(num_files));
}

}  // namespace
