// Stores at reserved addresses: memory comes and goes with the keys, and what can't be had is an error.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <vector>

#include "attend/kv/offloaded_store.h"
#include "attend/kv/virtual_store.h"
#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "support/expect_error.h"
#include "support/resident_memory.h"

namespace attend {
namespace {

constexpr int64_t kD = 64, kRow = kD * 2;  // f16
constexpr StoreShape kShape{.layers = 8, .kv_heads = 2, .d = kD, .dv = kD, .codec = DType::kF16, .context = 1 << 20};

int64_t page_of_system() {
  return sysconf(_SC_PAGESIZE);
}

float value(int layer, int64_t head, int64_t position, int64_t c, bool key) {
  return static_cast<float>((layer * 131 + head * 31 + position * 7 + c * 3 + (key ? 1 : 0)) % 1021) - 500;
}

void read(Store& store, int64_t first, int64_t count) {
  const int64_t heads = store.shape().kv_heads;
  std::vector<float> k(static_cast<size_t>(heads * count * kD)), v(k.size());
  std::vector<int32_t> position(static_cast<size_t>(count));
  std::iota(position.begin(), position.end(), static_cast<int32_t>(first));
  for (int layer = 0; layer < store.shape().layers; ++layer) {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < kD; ++c) {
          k[static_cast<size_t>((h * count + i) * kD + c)] = value(layer, h, first + i, c, true);
          v[static_cast<size_t>((h * count + i) * kD + c)] = value(layer, h, first + i, c, false);
        }
    const View keys = dense_view(k.data(), DType::kF32, {heads, count, kD});
    View values = keys;
    values.data = v.data();
    store.append(layer, keys, values, position);
  }
}

// The whole of a head's keys and values, read as a kernel reads them.
void expect_all(const Store& store, int layer, int head) {
  const KeyView keys = store.keys(layer, head);
  ASSERT_EQ(keys.runs.size(), 1u);
  for (int64_t i = 0; i < keys.count(); ++i) {
    const int64_t position = keys.position.empty() ? i : keys.position[static_cast<size_t>(i)];
    for (int64_t c = 0; c < kD; c += 21) {
      ASSERT_EQ(to_f32(static_cast<const F16*>(keys.runs[0].k)[i * kD + c]), value(layer, head, position, c, true));
      ASSERT_EQ(to_f32(static_cast<const F16*>(keys.runs[0].v)[i * kD + c]), value(layer, head, position, c, false));
    }
  }
}

int64_t resident_of(const void* begin, int64_t bytes) {
  std::vector<unsigned char> in(static_cast<size_t>((bytes + page_of_system() - 1) / page_of_system()));
  EXPECT_EQ(mincore(const_cast<void*>(begin), static_cast<size_t>(bytes), in.data()), 0);
  int64_t pages = 0;
  for (unsigned char b : in) pages += b & 1;
  return pages * page_of_system();
}

TEST(VirtualStore, HoldsMemoryWhereKeysLie) {
  const int64_t before = test::resident_bytes();
  auto store = make_virtual_store(kShape);  // 8 GB of addresses
  EXPECT_EQ(store->bytes(), 0);
  constexpr int64_t kTokens = 8000;
  for (int64_t t = 0; t < kTokens; t += 500) read(*store, t, 500);
  const int64_t heads = kShape.layers * kShape.kv_heads, held = heads * 2 * kTokens * kRow;  // 32 MB
  EXPECT_GE(store->bytes(), held);
  EXPECT_LT(store->bytes(), held + heads * 2 * page_of_system());
  if (test::kTellsMemory) {
    EXPECT_NEAR(static_cast<double>(test::resident_bytes() - before), static_cast<double>(held), 4e6);
  }
  const void* keys = store->keys(3, 1).runs[0].k;
  EXPECT_EQ(resident_of(keys, kShape.context * kRow), kTokens * kRow);
  // A window: what is dropped goes back at once, and addresses stay.
  std::vector<int64_t> window(800);
  std::iota(window.begin(), window.end(), kTokens - 800);
  for (int layer = 0; layer < kShape.layers; ++layer)
    for (int head = 0; head < kShape.kv_heads; ++head) store->keep(layer, head, window);
  EXPECT_EQ(store->keys(3, 1).runs[0].k, keys);
  EXPECT_EQ(resident_of(keys, kShape.context * kRow), 800 * kRow);
  if (test::kTellsMemory) {
    EXPECT_NEAR(static_cast<double>(test::resident_bytes() - before), static_cast<double>(held) / 10, 4e6);
  }
  expect_all(*store, 3, 1);
  store->clear();
  EXPECT_EQ(resident_of(keys, kShape.context * kRow), 0);
  EXPECT_EQ(store->bytes(), 0);
}

TEST(VirtualStore, BoundsReservations) {
  for (auto make : {+[](const StoreShape&shape, int64_t reserve) { return make_virtual_store(shape, {reserve}); },
                    +[](const StoreShape&shape, int64_t reserve) {
                      return make_offloaded_store(shape, {.reserve = reserve, .directory = {}});
                    }}) {
    StoreShape shape = kShape;
    auto store = make(shape, 10);
    read(*store, 0, 10);
    test::expect_error(ErrorKind::kMemory, "10 reserved", [&] { read(*store, 10, 1); });
    EXPECT_EQ(store->keys(7, 1).count(), 10);
    expect_all(*store, 0, 0);
    shape.context = 0;
    test::expect_error(ErrorKind::kArgument, "reserve", [&] { make(shape, 0); });
    test::expect_error(ErrorKind::kArgument, "reserve", [&] { make(shape, -1); });
  }
}

// More addresses than the process may have: one error, and it goes on.
TEST(VirtualStore, SurvivesAReservationThatFails) {
  StoreShape huge = kShape;
  huge.layers = 1 << 16;
  test::expect_error(ErrorKind::kMemory, "reserved", [&] { make_virtual_store(huge, {int64_t{1} << 31}); });
  huge.layers = huge.kv_heads = 1 << 10;
  huge.d = 1 << 20;
  test::expect_error(ErrorKind::kMemory, "addresses", [&] { make_virtual_store(huge, {int64_t{1} << 31}); });
  auto store = make_virtual_store(kShape);
  read(*store, 0, 3);
  expect_all(*store, 0, 1);
}

class OffloadedStore : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / fmt::format("attend-offload-{}", getpid());
    std::filesystem::create_directory(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::filesystem::path directory_;
};

TEST_F(OffloadedStore, KeepsLayersOnDisk) {
  constexpr int64_t kTokens = 16384, kLayer = 2 * 2 * kTokens * kRow;  // 8 MB
  auto store = make_offloaded_store(kShape, {.resident = 40, .directory = directory_});
  EXPECT_TRUE(std::filesystem::is_empty(directory_));  // it has no name
  for (int64_t t = 0; t < kTokens; t += 1024) read(*store, t, 1024);
  EXPECT_GE(store->disk_bytes(), 8 * kLayer);
  // The first two layers stay, and two of the three in motion.
  EXPECT_GE(store->bytes(), 3 * kLayer);
  EXPECT_LE(store->bytes(), 5 * kLayer + (1 << 20));
  for (int layer = 0; layer < kShape.layers; ++layer)
    for (int head = 0; head < kShape.kv_heads; ++head) expect_all(*store, layer, head);
  for (int64_t t = kTokens; t < kTokens + 3; ++t) read(*store, t, 1);
  EXPECT_LE(store->bytes(), 5 * kLayer + (1 << 20));
  std::vector<int64_t> some;
  for (int64_t s = 5; s < kTokens; s += 40) some.push_back(s);
  for (int layer = 0; layer < kShape.layers; ++layer)
    for (int head = 0; head < kShape.kv_heads; ++head) store->keep(layer, head, some);
  EXPECT_LT(store->disk_bytes(), 8 * kLayer / 30);
  for (int layer = 0; layer < kShape.layers; ++layer) expect_all(*store, layer, 1);
  store->clear();
  EXPECT_EQ(store->disk_bytes(), 0);
  EXPECT_EQ(store->bytes(), 0);
}

TEST_F(OffloadedStore, RefusesWhereNoFileCanBe) {
  test::expect_error(ErrorKind::kFile, "No such file",
                     [&] { make_offloaded_store(kShape, {.directory = directory_ / "absent"}); });
  test::expect_error(ErrorKind::kFile, "directory", [&] { make_offloaded_store(kShape, {.directory = "/proc"}); });
  test::expect_error(ErrorKind::kArgument, "resident",
                     [&] { make_offloaded_store(kShape, {.resident = -1, .directory = directory_}); });
}

// In a process of its own with a file system of a megabyte. 77: none can be mounted here.
int fill_a_small_disk(const std::string& directory) {
  const std::string user = fmt::format("0 {} 1", geteuid()), group = fmt::format("0 {} 1", getegid());
  auto say = [](const char* file, const std::string& text) {
    return static_cast<bool>((std::ofstream(file) << text).flush());
  };
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 || !say("/proc/self/uid_map", user) ||
      !say("/proc/self/setgroups", "deny") || !say("/proc/self/gid_map", group) ||
      mount("none", directory.c_str(), "tmpfs", 0, "size=1m") != 0)
    return 77;
  StoreShape shape = kShape;
  shape.layers = shape.kv_heads = 1;
  auto store = make_offloaded_store(shape, {.directory = directory});
  read(*store, 0, 100);
  try {
    read(*store, 100, 5000);
    return 1;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kFile || !std::strstr(error.what(), "has no room")) return 2;
  }
  if (store->keys(0, 0).count() != 100) return 3;
  read(*store, 100, 200);  // for which there is room
  expect_all(*store, 0, 0);
  return testing::Test::HasFailure() ? 4 : 0;
}

TEST_F(OffloadedStore, FullDiskIsAnError) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      _exit(fill_a_small_disk(directory_));
    } catch (...) {
      _exit(5);
    }
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77)
    GTEST_SKIP() << "needs a small file system to fill, and user namespaces don't allow mounting one here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(OffloadedOptions, AreMarkedAsPaths) {
  int paths = 0;
  for (const Option& option : registry().at("offloaded").options) paths += option.path;
  EXPECT_EQ(paths, 1);
  for (const Entry* entry : registry().entries())
    for (const Option& option : entry->options) EXPECT_TRUE(option.path || option.unit != "file") << entry->name;
}

}  // namespace
}  // namespace attend
