#include "mapped_file.hpp"

#include <gtest/gtest.h>

#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <utility>

#include "files.hpp"

namespace {

using llama::mapped_file;
using tiny::contains;

std::string said_of(const std::string& path) {
  return tiny::refusal([&] { mapped_file{path}; });
}

TEST(MappedFile, HasTheBytesOfTheFile) {
  const tiny::temporary_folder folder;
  std::string bytes = "zero \0 within";
  for (int i = 0; i < 10000; ++i) bytes += static_cast<char>(i % 251);
  mapped_file file(folder.add("a", bytes));
  EXPECT_EQ(file.bytes(), bytes);
  const char* const where = file.bytes().data();
  const mapped_file moved(std::move(file));
  EXPECT_EQ(moved.bytes(), bytes);
  EXPECT_EQ(moved.bytes().data(), where);
}

TEST(MappedFile, MayBeEmpty) {
  const tiny::temporary_folder folder;
  EXPECT_TRUE(mapped_file(folder.add("a", "")).bytes().empty());
}

TEST(MappedFile, OutlivesItsName) {
  const tiny::temporary_folder folder;
  const std::string path = folder.add("a", "bytes");
  const mapped_file file(path);
  std::filesystem::remove(path);
  EXPECT_EQ(file.bytes(), "bytes");
}

TEST(MappedFile, WhatCannotBeMapped) {
  const tiny::temporary_folder folder;
  const std::string fifo = folder.path() + "/fifo", missing = folder.path() + "/missing";
  EXPECT_EQ(said_of(missing), missing + ": No such file or directory");
  EXPECT_PRED2(contains, said_of(folder.add("a", "bytes") + "/b"), "Not a directory");
  EXPECT_PRED2(contains, said_of(folder.path()), "not a regular file");
  EXPECT_PRED2(contains, said_of("/dev/null"), "not a regular file");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_PRED2(contains, said_of(fifo), "not a regular file");  // and it does not wait for a writer
}

}  // namespace
