#include "attend/tensor/npy.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "attend/tensor/error.h"

namespace attend {
namespace {

std::string file_of(std::string header, std::string data, int version = 1) {
  std::string text("\x93NUMPY", 6);
  text += static_cast<char>(version);
  text += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) text += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return text + header + data;
}

Array parse(const std::string& text) {
  return parse_npy(std::as_bytes(std::span(text)), "test");
}

std::string refusal(const std::string& text) {
  try {
    parse(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFile);
    return error.what();
  }
  return "accepted";
}

class NpyFile : public testing::Test {
 protected:
  NpyFile() {
    char name[] = "/tmp/attend-npy-XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~NpyFile() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(NpyFile, EveryTypeComesBack) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const Shape shape{3, 5, 7};
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kBool}) {
    for (int rank = 0; rank <= 3; ++rank) {
      const Array array = make_array(type, rank, shape);
      for (int64_t i = 0; i < array.storage.bytes(); ++i) {
        array.storage.data()[i] = std::byte(random() & (type == DType::kBool ? 1 : 0xff));
      }
      const auto path = folder_ / "array.npy";
      write_npy(path, array.view);
      EXPECT_EQ(std::filesystem::file_size(path) % 64, static_cast<uintmax_t>(array.storage.bytes()) % 64);
      const Array back = read_npy(path);
      EXPECT_EQ(back.view.type, type);
      EXPECT_EQ(to_string(back.view), to_string(array.view));
      ASSERT_EQ(back.storage.bytes(), array.storage.bytes());
      EXPECT_EQ(std::memcmp(back.storage.data(), array.storage.data(), static_cast<size_t>(back.storage.bytes())), 0);
    }
  }
}

TEST_F(NpyFile, StridedViewsAreWrittenInOrder) {
  float data[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  View view = dense_view(data, DType::kF32, {4, 2});
  view.stride[0] = 3;
  write_npy(folder_ / "a.npy", view);
  const Array back = read_npy(folder_ / "a.npy");
  const float want[] = {0, 1, 3, 4, 6, 7, 9, 10};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(value_at(back.view, i), want[i]);
}

TEST_F(NpyFile, LeavesNothingBehindWhenItCantWrite) {
  float x = 1;
  EXPECT_THROW(write_npy(folder_ / "no" / "a.npy", dense_view(&x, DType::kF32, {1})), Error);
  EXPECT_THROW(write_npy(folder_, dense_view(&x, DType::kF32, {1})), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  EXPECT_THROW(read_npy(folder_), Error);
  EXPECT_THROW(read_npy(folder_ / "none.npy"), Error);
}

TEST_F(NpyFile, DevicesAreWrittenNotReplaced) {
  float x = 1;
  write_npy("/dev/null", dense_view(&x, DType::kF32, {1}));
  struct stat status {};
  ASSERT_EQ(stat("/dev/null", &status), 0);
  EXPECT_TRUE(S_ISCHR(status.st_mode));
}

TEST(Npy, ReadsFortranOrder) {
  std::string data;
  for (int i = 0; i < 6; ++i) data.append(reinterpret_cast<const char*>(&i), 4);
  const Array array = parse(file_of("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3)}", data, 2));
  const int want[] = {0, 2, 4, 1, 3, 5};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(value_at(array.view, i), want[i]);
}

TEST(Npy, ReadsOddButLegalHeaders) {
  EXPECT_EQ(parse(file_of("{\"shape\": (), 'fortran_order': False, 'descr': '|b1', }   \n", "\x05", 3)).view.rank, 0);
  EXPECT_EQ(parse(file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 0, 5)}", "")).view.count(), 0);
  EXPECT_EQ(value_at(parse(file_of("{'descr':'|b1','fortran_order':False,'shape':(1,)}", "\x05")).view, 0), 1);
}

TEST(Npy, RefusesWhatIsNoArray) {
  const std::string good = file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", std::string(24, 'x'));
  for (size_t n = 0; n < good.size(); ++n) EXPECT_NE(refusal(good.substr(0, n)), "accepted") << n;
  EXPECT_EQ(refusal(good + "x"), "[npy] file = \"test\", it holds 25 bytes of elements, its shape needs 24");
  auto with = [](const std::string& descr, const std::string& shape) {
    return refusal(file_of("{'descr': " + descr + ", 'fortran_order': False, 'shape': " + shape + "}", "x"));
  };
  for (const char* descr : {"'>f4'", "'<c8'", "'|O'", "''", "'<f4", "[('a', '<f4')]", "5"}) {
    EXPECT_NE(with(descr, "(1,)"), "accepted") << descr;
  }
  for (const char* shape : {"(-1,)", "(9223372036854775807,9223372036854775807)", "(99999999999999999999,)", "(1", "1",
                            "(1,1,1,1,1,1,1)", "(0,9223372036854775807,2)", "(1 1)", "(4611686018427387904,)"}) {
    EXPECT_NE(with("'|b1'", shape), "accepted") << shape;
  }
  EXPECT_NE(refusal(file_of("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}", "abcd")),
            "accepted");
  EXPECT_NE(refusal(file_of("{'descr': '<f4', 'shape': ()}", "abcd")), "accepted");
  EXPECT_NE(refusal(file_of("{'descr': '<f4', 'fortran_order': 0, 'shape': ()}", "abcd")), "accepted");
  EXPECT_NE(refusal(file_of("{'descr': '<f4', 'fortran_order': False, 'shape': ()} x", "abcd")), "accepted");
  EXPECT_NE(refusal(file_of("", "", 4)), "accepted");
}

}  // namespace
}  // namespace attend
