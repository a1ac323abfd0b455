// Saved stores come back bit by bit, into any store; files that are not what was saved are refused.
#include "attend/kv/store_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <vector>

#include "attend/kv/staged_store.h"
#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "support/expect_error.h"

namespace attend {
namespace {

const StoreOrigin kOrigin{"model", "softmax"};

StoreShape shape_of(DType codec) {
  return {.layers = 2, .kv_heads = 2, .d = 32, .dv = 64, .codec = codec, .context = 256};
}

std::unique_ptr<Store> open(const std::string& spec, const StoreShape& shape) {
  return registry().make<StoreFactory>(parse_specs(spec)[0])->open(shape);
}

void fill(Store& store, int64_t tokens) {
  const StoreShape& shape = store.shape();
  std::mt19937 random(11);
  std::vector<float> k(static_cast<size_t>(shape.kv_heads * tokens * shape.d)),
      v(static_cast<size_t>(shape.kv_heads * tokens * shape.dv));
  std::vector<int32_t> position;
  for (int64_t i = 0; i < tokens; ++i) position.push_back(static_cast<int32_t>(i));
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (std::vector<float>* rows : {&k, &v})
      for (float& x : *rows) x = static_cast<float>(random() % 2001) / 100.0f - 10;
    store.append(layer, dense_view(k.data(), DType::kF32, {shape.kv_heads, tokens, shape.d}),
                 dense_view(v.data(), DType::kF32, {shape.kv_heads, tokens, shape.dv}), position);
  }
  std::vector<int64_t> some;
  for (int64_t s = 0; s < tokens; s += 1 + static_cast<int64_t>(random() % 3)) some.push_back(s);
  store.keep(1, 0, some);
  store.keep(0, 1, {});
}

std::string rows_of(const Store& store) {
  std::string all;
  const StoreShape& shape = store.shape();
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head) {
      const KeyView keys = store.keys(layer, head);
      all += fmt::format("{} {}\n", keys.count(), keys.position.size());
      all.append(reinterpret_cast<const char*>(keys.position.data()), keys.position.size_bytes());
      for (const KeyRun& run : keys.runs)
        for (int64_t i = 0; i < run.count; ++i) {
          all.append(static_cast<const char*>(run.keys().row(i)), static_cast<size_t>(row_bytes(run.k_type, shape.d)));
          all.append(static_cast<const char*>(run.values().row(i)),
                     static_cast<size_t>(row_bytes(run.v_type, shape.dv)));
          for (const F16* scales : {run.k_scale, run.k_offset})
            if (scales) all.append(reinterpret_cast<const char*>(scales), static_cast<size_t>(2 * shape.d));
        }
    }
  return all;
}

class StoreFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("attend-state-{}", getpid());
    std::filesystem::create_directory(folder_);
    path_ = folder_ / "a.state";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string saved() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static int64_t load(const std::string& bytes, const StoreOrigin& origin, Store& store) {
    std::istringstream in(bytes);
    return load_store(in, static_cast<int64_t>(bytes.size()), "it", origin, store);
  }

  std::filesystem::path folder_, path_;
};

TEST_F(StoreFile, ComesBackIntoAnyStore) {
  for (DType codec : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
    const StoreShape shape = shape_of(codec);
    for (const char* from : {"contiguous", "paged", "virtual"}) {
      auto store = open(from, shape);
      fill(*store, 100);
      save_store(*store, kOrigin, 123, path_);
      for (const Entry* entry : registry().entries()) {
        if (entry->kind != Kind::kStore) continue;
        auto other = open(std::string(entry->name), shape);
        EXPECT_EQ(load_store(path_, kOrigin, *other), 123);
        EXPECT_EQ(rows_of(*other), rows_of(*store)) << from << " to " << entry->name;
      }
    }
  }
}

TEST_F(StoreFile, KeepsMoreThanKeysForThoseWhoAsk) {
  auto store = open("contiguous", shape_of(DType::kF16)), other = open("paged", shape_of(DType::kF16));
  fill(*store, 10);
  const std::vector<std::byte> more = {std::byte{7}, std::byte{0}, std::byte{255}};
  save_store(*store, kOrigin, 10, path_, more);
  test::expect_error(ErrorKind::kFile, "more than keys", [&] { load_store(path_, kOrigin, *other); });
  EXPECT_EQ(other->keys(0, 0).count(), 0);
  std::vector<std::byte> got;
  EXPECT_EQ(load_store(path_, kOrigin, *other, &got), 10);
  EXPECT_EQ(got, more);
}

// Stages, groups and what is left of them; another codec's file is refused.
TEST_F(StoreFile, KeysThatAgedComeBackIntoAnyStore) {
  const StoreShape shape = shape_of(DType::kF16);
  const CodecStage four{20, DType::kQ4_C, DType::kQ4_1}, two{60, DType::kQ2_C, DType::kQ2_1};
  const Codec codec(DType::kF16, {four, two}, 16, 16), other_codec(DType::kF16, {two}, 16, 16);
  auto staged = [&](const std::string& spec, const Codec& how) {
    return open_store(*registry().make<StoreFactory>(parse_specs(spec)[0]), shape, how);
  };
  for (const char* from : {"contiguous", "paged:page=8"}) {
    auto store = staged(from, codec);
    fill(*store, 123);
    EXPECT_TRUE(store->settle(112));
    store->keep(0, 0, std::vector<int64_t>{0, 3, 4, 17, 40, 41, 90, 100, 121});
    EXPECT_EQ(store->keys(1, 1).runs.front().k_type, DType::kQ2_C);
    save_store(*store, kOrigin, 123, path_);
    for (const Entry* entry : registry().entries()) {
      if (entry->kind != Kind::kStore) continue;
      auto back = staged(std::string(entry->name), codec);
      EXPECT_EQ(load_store(path_, kOrigin, *back), 123);
      EXPECT_EQ(rows_of(*back), rows_of(*store)) << from << " to " << entry->name;
      // It goes on as the one that was saved.
      store->settle(160), back->settle(160);
      EXPECT_EQ(rows_of(*back), rows_of(*store));
      store->clear();
      EXPECT_EQ(load_store(path_, kOrigin, *store), 123);
    }
    auto wrong = staged("contiguous", other_codec);
    test::expect_error(ErrorKind::kFile, "not coded as the policy", [&] { load_store(path_, kOrigin, *wrong); });
    EXPECT_EQ(wrong->keys(0, 0).count(), 0);
  }
}

TEST_F(StoreFile, IsWrittenWholeOrNotAtAll) {
  auto store = open("contiguous", shape_of(DType::kF16));
  fill(*store, 10);
  save_store(*store, kOrigin, 10, path_);
  const std::string before = saved();
  store->clear();
  save_store(*store, kOrigin, 0, path_);
  EXPECT_LT(saved().size(), before.size());
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) files += entry.is_regular_file();
  EXPECT_EQ(files, 1);
  test::expect_error(ErrorKind::kFile, "can't be written",
                     [&] { save_store(*store, kOrigin, 0, folder_ / "absent" / "a.state"); });
  std::filesystem::create_directory(folder_ / "taken");
  test::expect_error(ErrorKind::kFile, "can't be written", [&] { save_store(*store, kOrigin, 0, folder_ / "taken"); });
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find("taken."), std::string::npos);  // nothing is left of the attempt
}

TEST_F(StoreFile, RefusesWhatItDidNotSave) {
  const StoreShape shape = shape_of(DType::kF16);
  auto store = open("contiguous", shape);
  fill(*store, 20);
  save_store(*store, kOrigin, 20, path_);
  const std::string good = saved();
  auto other = open("paged", shape);
  auto refuses = [&](const std::string& bytes, std::string_view why, const StoreOrigin& origin = kOrigin) {
    test::expect_error(ErrorKind::kFile, why, [&] { load(bytes, origin, *other); });
    EXPECT_EQ(other->keys(0, 0).count(), 0);
  };
  refuses("", "cut off");
  refuses("GGUF" + good.substr(4), "no saved state");
  refuses(good, "another model", {"other", "softmax"});
  refuses(good, "another policy", {"model", "softmax:window=5"});
  std::string changed = good;
  changed[8] = 1;
  refuses(changed, "version 1 of the format, this program reads 3");
  refuses(good + "x", "damaged");
  for (size_t length = 0; length < good.size(); length += 1 + length / 16) refuses(good.substr(0, length), "");
  // Any bit.
  std::mt19937 random(3);
  for (size_t at = 0; at < good.size(); at += 1 + random() % 97) {
    changed = good;
    changed[at] = static_cast<char>(changed[at] ^ (1 << random() % 8));
    refuses(changed, "");
  }
  StoreShape wider = shape;
  wider.dv = 32;
  other = open("contiguous", wider);
  refuses(good, "another shape");
  EXPECT_THROW(load_store(folder_ / "absent", kOrigin, *other), Error);
  EXPECT_THROW(load_store(path_, kOrigin, *store), Error);  // not empty
}

}  // namespace
}  // namespace attend
