#include "attend/lm/gguf.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <random>

#include "support/expect_error.h"
#include "support/gguf_writer.h"

namespace attend {
namespace {

using test::as_bytes;
using test::expect_error;
using test::GgufWriter;

// A file with every kind of value and two tensors.
GgufWriter sample() {
  GgufWriter w;
  w.text("general.architecture", "llama");
  w.u32("a.count", 7);
  w.i64("a.negative", -5);
  w.f32("a.ratio", 0.5f);
  w.flag("a.flag", true);
  w.texts("a.texts", {"one", "", "t\xc3\xbcr"});
  w.reals("a.reals", {1.5f, -2.0f});
  w.integers("a.integers", {3, -4, 5});
  w.tensor("matrix", {2, 3}, std::array{1.f, 2.f, 3.f, 4.f, 5.f, 6.f});
  w.tensor("blocks", WeightType::kQ8_0, {2, 32}, std::string(2 * 34, 'x'));
  return w;
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content) {
    const int fd = mkstemp(path_.data());
    EXPECT_EQ(::write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    close(fd);
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = testing::TempDir() + "attend-gguf-XXXXXX";
};

void expect_sample(const Gguf& file) {
  EXPECT_EQ(file.text("general.architecture"), "llama");
  EXPECT_EQ(file.text("absent", "other"), "other");
  EXPECT_TRUE(file.has("a.count"));
  EXPECT_FALSE(file.has("absent"));
  EXPECT_EQ(file.integer("a.count", 0, 10), 7);
  EXPECT_EQ(file.integer("a.negative", -10, 10), -5);
  EXPECT_EQ(file.integer("absent", 0, 10, 3), 3);
  EXPECT_EQ(file.real("a.ratio"), 0.5);
  EXPECT_EQ(file.real("absent", 2.0), 2.0);
  EXPECT_TRUE(file.flag("a.flag", false));
  EXPECT_EQ(file.texts("a.texts"), (std::vector<std::string_view>{"one", "", "t\xc3\xbcr"}));
  EXPECT_EQ(file.reals("a.reals"), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(file.integers("a.integers"), (std::vector<int32_t>{3, -4, 5}));

  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor& matrix = file.tensor("matrix");
  EXPECT_EQ(matrix.rank, 2);
  EXPECT_EQ(matrix.shape, (std::array<int64_t, 4>{2, 3, 1, 1}));
  EXPECT_EQ(matrix.count(), 6);
  ASSERT_EQ(matrix.data.size(), 24u);
  float last;
  std::memcpy(&last, matrix.data.data() + 20, 4);
  EXPECT_EQ(last, 6.f);
  EXPECT_EQ(file.tensor("blocks").type, WeightType::kQ8_0);
  EXPECT_EQ(file.tensor("blocks").data.size(), 68u);
  EXPECT_EQ(file.find("absent"), nullptr);
}

TEST(Gguf, ReadsWhatWasWrittenFromMemory) {
  const std::string bytes = sample().bytes();
  expect_sample(Gguf::parse(as_bytes(bytes), "memory"));
}

TEST(Gguf, ReadsWhatWasWrittenFromAFileAndAfterRelease) {
  const TemporaryFile file(sample().bytes());
  Gguf opened = Gguf::open(file.path());
  EXPECT_EQ(opened.name(), file.path());
  opened.release(opened.tensor("matrix").data);
  Gguf moved = std::move(opened);
  expect_sample(moved);
}

TEST(Gguf, AbsentMistypedAndOutOfRangeKeys) {
  const std::string bytes = sample().bytes();
  const Gguf file = Gguf::parse(as_bytes(bytes), "memory");
  const auto fails = [](std::string_view part, auto action) { expect_error(ErrorKind::kFile, part, action); };
  fails("lacks the key absent", [&] { file.integer("absent", 0, 1); });
  fails("lacks the key absent", [&] { file.texts("absent"); });
  fails("lacks the tensor absent", [&] { file.tensor("absent"); });
  fails("a.count is 7, not within 0 to 6", [&] { file.integer("a.count", 0, 6); });
  fails("a.negative is -5", [&] { file.integer("a.negative", 0, 6, 1); });
  fails("is of type u32, not text", [&] { file.text("a.count"); });
  fails("is of type u32, not f32 or f64", [&] { file.real("a.count", 1.0); });
  fails("is of type f32, not an integer", [&] { file.integer("a.ratio", 0, 1); });
  fails("is of type bool, not an integer", [&] { file.integer("a.flag", 0, 1); });
  fails("is of type u32, not bool", [&] { file.flag("a.count", true); });
  fails("is of type array of text, not an array of integers", [&] { file.integers("a.texts"); });
  fails("is of type array of i32, not an array of f32", [&] { file.reals("a.integers"); });
}

TEST(Gguf, FilesThatAreNone) {
  const auto open_fails = [](std::string_view part, const std::string& path) {
    expect_error(ErrorKind::kFile, part, [&] { Gguf::open(path); });
  };
  open_fails("can't be opened: No such file", testing::TempDir() + "attend-absent.gguf");
  open_fails("\\x1b[2J", testing::TempDir() + "\x1b[2J\n.gguf");
  open_fails("is a directory", testing::TempDir());
  open_fails("is empty", TemporaryFile("").path());
  open_fails("can't be opened", "");
  const TemporaryFile pipe("");
  unlink(pipe.path().c_str());
  ASSERT_EQ(mkfifo(pipe.path().c_str(), 0600), 0);
  open_fails("is not a regular file", pipe.path());
  const TemporaryFile text("This is a text and no model.");
  open_fails("is not a GGUF file", text.path());
  EXPECT_THROW(Gguf::open("/dev/null"), Error);
}

void parse_fails(std::string_view part, const std::string& bytes, ErrorKind kind = ErrorKind::kFile) {
  expect_error(kind, part, [&] { Gguf::parse(as_bytes(bytes), "hostile"); });
}

template <class... T>
std::string packed(T... values) {
  std::string out;
  (GgufWriter::put(out, values), ...);
  return out;
}

TEST(GgufHostile, Versions) {
  GgufWriter w = sample();
  w.version = 2;
  parse_fails("GGUF version 2 is not supported; supported: 3", w.bytes(), ErrorKind::kUnsupported);
  w.version = 0x03000000;
  parse_fails("is big-endian", w.bytes(), ErrorKind::kUnsupported);
}

TEST(GgufHostile, Counts) {
  for (uint64_t many : {uint64_t{1} << 17, uint64_t{1} << 40, ~uint64_t{0} - 8}) {
    GgufWriter w = sample();
    w.extra_keys = many;
    parse_fails("keys, more than fit", w.bytes());
    w = sample();
    w.extra_tensors = many * 8;
    parse_fails("tensors, more than fit", w.bytes());
    for (uint32_t element : {0u, 6u, 8u, 12u}) {
      w = sample();
      w.raw_key("huge", 9, GgufWriter::array_head(element, many));
      parse_fails("key huge claims", w.bytes());
    }
  }
  GgufWriter w = sample();
  w.extra_keys = 1;
  EXPECT_THROW(Gguf::parse(as_bytes(w.bytes()), "hostile"), Error);
}

TEST(GgufHostile, Values) {
  const auto with_key = [](uint32_t type, const std::string& value, std::string_view key = "key") {
    GgufWriter w = sample();
    w.raw_key(key, type, value);
    return w.bytes();
  };
  parse_fails("unknown value type 13", with_key(13, "0123456789abcdef"));
  parse_fails("neither 0 nor 1", with_key(7, "\x02"));
  parse_fails("neither 0 nor 1", with_key(9, GgufWriter::array_head(7, 2) + "\x01\x03"));
  parse_fails("array of arrays", with_key(9, GgufWriter::array_head(9, 1) + GgufWriter::array_head(4, 1) + "abcd"));
  parse_fails("beyond the end", with_key(8, packed(uint64_t{1} << 62)));
  parse_fails("beyond the end", with_key(9, GgufWriter::array_head(8, 1) + packed(~uint64_t{0})));
  parse_fails("the key a.count twice", with_key(4, "abcd", "a.count"));
  parse_fails("empty key", with_key(4, "abcd", ""));
  parse_fails("'k\\x00y' with control", with_key(4, "abcd", std::string_view("k\0y", 3)));
  parse_fails("'k\\x1b[1m' with control", with_key(4, "abcd", "k\x1b[1m"));
  parse_fails("'\\xc3(' with control characters or invalid", with_key(4, "abcd", "\xc3\x28"));
  parse_fails("more than 256 bytes", with_key(4, "abcd", std::string(257, 'k')));
  for (uint32_t bad : {0u, 3u, 48u, 1u << 31})
    parse_fails("power of two", with_key(4, packed(bad), "general.alignment"));
  parse_fails("not of type u32", with_key(8, packed(uint64_t{0}), "general.alignment"));
}

TEST(GgufHostile, Tensors) {
  const auto with_tensor = [](std::string_view name, uint32_t type, std::vector<int64_t> shape, uint64_t offset) {
    GgufWriter w = sample();
    w.raw_tensor(name, type, shape, offset);
    return w.bytes();
  };
  constexpr int64_t kHuge = INT64_MAX;
  parse_fails("rank 0", with_tensor("t", 0, {}, 0));
  parse_fails("rank 5", with_tensor("t", 0, {1, 1, 1, 1, 1}, 0));
  parse_fails("extent of 0", with_tensor("t", 0, {4, 0}, 0));
  parse_fails("extent of 18446744073709551615", with_tensor("t", 0, {-1}, 0));
  parse_fails("zero or too large", with_tensor("t", 0, {kHuge, 2}, 0));
  parse_fails("too large", with_tensor("t", 0, {kHuge / 2}, 0));
  parse_fails("beyond the end", with_tensor("t", 0, {1 << 20}, 0));
  parse_fails("beyond the end", with_tensor("t", 0, {1}, uint64_t{1} << 60));
  parse_fails("beyond the end", with_tensor("t", 0, {1}, ~uint64_t{31}));
  parse_fails("not a multiple of 32", with_tensor("t", 0, {1}, 4));
  parse_fails("multiple of Q8_0's block of 32", with_tensor("t", 8, {2, 33}, 0));
  parse_fails("the tensor matrix twice", with_tensor("matrix", 0, {1}, 0));
  parse_fails("overlaps", with_tensor("t", 0, {1}, 0));
  parse_fails("empty tensor name", with_tensor("", 0, {1}, 0));
  parse_fails("tensor type IQ2_XXS is not supported; supported: F32, F16, BF16, Q8_0, Q4_1, Q5_0, Q4_K, Q6_K",
              with_tensor("t", 16, {256}, 0), ErrorKind::kUnsupported);
  parse_fails("tensor type number 4000000000 is not", with_tensor("t", 4000000000u, {256}, 0), ErrorKind::kUnsupported);
}

// Lets this process map some tens of MiB more and no further, so that an allocation of a claimed size fails.
class MemoryLimit {
 public:
  MemoryLimit() {
    getrlimit(RLIMIT_AS, &before_);
    int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit tight = before_;
    tight.rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + (int64_t{64} << 20));
    EXPECT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  }
  ~MemoryLimit() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

TEST(GgufHostile, ClaimedSizesAreNotAllocated) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the limit on addresses that this test sets leaves sanitizers no room for their shadow memory";
#endif
  const std::string filler(1 << 20, 'x');  // makes counts below a million credible
  std::vector<std::string> files;
  for (uint64_t count : {uint64_t{1} << 16, uint64_t{1} << 20, uint64_t{1} << 36, uint64_t{1} << 60}) {
    GgufWriter w = sample();
    w.text("filler", filler);
    w.extra_keys = count;
    files.push_back(w.bytes());
    w = sample();
    w.text("filler", filler);
    w.extra_tensors = count;
    files.push_back(w.bytes());
    for (uint32_t element : {0u, 8u, 12u}) {
      w = sample();
      w.raw_key("huge", 9, GgufWriter::array_head(element, count));
      files.push_back(w.bytes());
    }
    w = sample();
    w.raw_key("huge", 8, packed(count * 8));
    files.push_back(w.bytes());
    w = sample();
    w.raw_tensor("huge", 0, {static_cast<int64_t>(count) * 4}, 0);
    files.push_back(w.bytes());
  }
  const MemoryLimit limit;
  for (const std::string& bytes : files) EXPECT_THROW(Gguf::parse(as_bytes(bytes), "hostile"), Error);
}

TEST(GgufHostile, TruncatedAtEveryByte) {
  const std::string bytes = sample().bytes();
  const size_t whole = bytes.size() - 28;  // the last tensor's 68 bytes are padded to 96
  for (size_t length = 0; length < bytes.size(); ++length) {
    // A fresh block each time, so that a sanitizer sees a read beyond its end.
    const std::vector<std::byte> cut(as_bytes(bytes).begin(), as_bytes(bytes).begin() + static_cast<ssize_t>(length));
    if (length < whole) {
      EXPECT_THROW(Gguf::parse(cut, "hostile"), Error) << length;
    } else {
      EXPECT_NO_THROW(Gguf::parse(cut, "hostile")) << length;
    }
  }
}

// Whatever parses must be readable to its last byte; whatever does not must say so.
TEST(GgufHostile, FlippedBits) {
  const std::string original = sample().bytes();
  const uint32_t seed = 20240229;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  int parsed = 0;
  const auto visit = [&](const std::string& bytes) {
    try {
      const Gguf file = Gguf::parse(as_bytes(bytes), "hostile");
      ++parsed;
      unsigned sum = 0;
      for (const GgufTensor& tensor : file.tensors()) {
        for (std::byte b : tensor.data) sum += static_cast<unsigned>(b);
      }
      for (std::string_view text : file.texts("a.texts")) {
        for (char c : text) sum += static_cast<unsigned char>(c);
      }
      EXPECT_GE(sum, 0u);
    } catch (const Error&) {
    }
  };
  for (size_t bit = 0; bit < original.size() * 8; ++bit) {
    std::string bytes = original;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    visit(bytes);
  }
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = original;
    for (int i = 0; i < 4; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    visit(bytes);
  }
  EXPECT_GT(parsed, 0);
}

}  // namespace
}  // namespace attend
