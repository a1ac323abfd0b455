#include "attend/tensor/buffer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "attend/tensor/error.h"
#include "support/expect_error.h"

namespace attend {
namespace {

constexpr int64_t kMegabyte = 1 << 20, kLargePage = 2 << 20;

uint8_t byte_at(int64_t i) {
  return static_cast<uint8_t>(i * 31 + (i >> 12) * 7);
}

void write(const Buffer& buffer, int64_t from) {
  for (int64_t i = from; i < buffer.bytes(); ++i) buffer.as<uint8_t>()[i] = byte_at(i);
}

void expect_kept(const Buffer& buffer, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer.as<uint8_t>()[i], byte_at(i)) << i << " of " << buffer.bytes();
}

// Small blocks, mappings and large pages, in any order.
TEST(Buffer, KeepsItsBytesWhenItGrowsAndShrinks) {
  constexpr uint64_t kSeed = 1;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  Buffer buffer;
  for (int step = 0; step < 200; ++step) {
    const int64_t before = buffer.bytes();
    const int64_t scale = int64_t{1} << (random() % 26), bytes = static_cast<int64_t>(random() % 4) * scale + 1;
    buffer.resize(bytes);
    ASSERT_EQ(buffer.bytes(), bytes);
    ASSERT_GE(buffer.held(), bytes);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    ASSERT_NO_FATAL_FAILURE(expect_kept(buffer, std::min(before, bytes)));
    write(buffer, std::min(before, bytes));
  }
}

TEST(Buffer, LargeBlocksBeginAtLargePages) {
  Buffer buffer(kLargePage + 1), other(kLargePage + 1);
  const int64_t page = sysconf(_SC_PAGESIZE);
  write(buffer, 0);
  for (int64_t megabytes : {3, 10, 11, 25, 90, 12, 8, 2}) {
    const int64_t before = buffer.bytes();
    buffer.resize(megabytes * kMegabyte + 100);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kLargePage, 0u) << megabytes;
    EXPECT_LT(buffer.held() - buffer.bytes(), page);
    ASSERT_NO_FATAL_FAILURE(expect_kept(buffer, std::min(before, buffer.bytes())));
    write(buffer, std::min(before, buffer.bytes()));
  }
  EXPECT_EQ(Buffer(kLargePage - 1).held(), kLargePage - 1);
}

int64_t resident(const Buffer& buffer) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  std::vector<unsigned char> pages(static_cast<size_t>((buffer.bytes() + page - 1) / page));
  EXPECT_EQ(mincore(buffer.data(), static_cast<size_t>(buffer.bytes()), pages.data()), 0);
  return page * std::count_if(pages.begin(), pages.end(), [](unsigned char x) { return (x & 1) != 0; });
}

// Blocks that are not written to hold nothing, and a large page is the most that a byte brings in.
TEST(Buffer, HoldsWhatWasWritten) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  for (int64_t bytes : {kLargePage - page, kLargePage + page, 20 * kLargePage}) {
    const Buffer buffer(bytes);
    EXPECT_EQ(resident(buffer), 0) << bytes;
    buffer.as<uint8_t>()[0] = 1;
    EXPECT_GE(resident(buffer), page) << bytes;
    EXPECT_LE(resident(buffer), bytes < kLargePage ? page : kLargePage) << bytes;
  }
}

TEST(Buffer, WhatCannotBeHadChangesNothing) {
  for (int64_t bytes : {int64_t{100}, kMegabyte, 9 * kMegabyte}) {
    Buffer buffer(bytes);
    write(buffer, 0);
    for (int64_t much : {int64_t{1} << 46, INT64_MAX, int64_t{-1}})
      test::expect_error(ErrorKind::kMemory, "can't be allocated", [&] { buffer.resize(much); });
    EXPECT_EQ(buffer.bytes(), bytes);
    ASSERT_NO_FATAL_FAILURE(expect_kept(buffer, bytes));
  }
}

}  // namespace
}  // namespace attend
