// What pages save: sharing, copies on write, waste.
#include "attend/kv/paged_store.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <random>
#include <vector>

#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "support/expect_error.h"

namespace attend {
namespace {

constexpr int64_t kD = 64, kPage = 16;
constexpr StoreShape kShape{.layers = 2, .kv_heads = 2, .d = kD, .dv = kD, .codec = DType::kF16};
constexpr int64_t kTables = kShape.layers * kShape.kv_heads;

// Tokens [first, first + count) of text `text`, to every layer: rows that depend on nothing else.
void read(Store& store, uint32_t text, int64_t first, int64_t count) {
  const int64_t heads = store.shape().kv_heads;
  std::vector<float> rows(static_cast<size_t>(heads * count * kD));
  std::vector<int32_t> position;
  for (int64_t i = 0; i < count; ++i) position.push_back(static_cast<int32_t>(first + i));
  for (int layer = 0; layer < store.shape().layers; ++layer) {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < count; ++i) {
        std::mt19937 random(
            static_cast<uint32_t>(((text * 8 + static_cast<uint32_t>(layer)) * 8 + static_cast<uint32_t>(h)) * 65536 +
                                  static_cast<uint32_t>(first + i)));
        for (int64_t c = 0; c < kD; ++c)
          rows[static_cast<size_t>((h * count + i) * kD + c)] = static_cast<float>(random() % 2001) / 1000.0f - 1;
      }
    const View view = dense_view(rows.data(), DType::kF32, {heads, count, kD});
    store.append(layer, view, view, position);
  }
}

std::shared_ptr<PagePool> pool_of(const PagedOptions& options = {}) {
  return make_page_pool(kShape, options);
}

TEST(PagedStore, ForksShareUntilTheyWrite) {
  const PagedOptions options{.page = kPage, .share = false};
  const auto pool = pool_of(options);
  auto store = make_paged_store(kShape, options, pool);
  read(*store, 1, 0, 3 * kPage + 5);
  EXPECT_EQ(pool->pages(), 4 * kTables);
  std::vector<std::unique_ptr<Store>> forks;
  for (int f = 0; f < 5; ++f) forks.push_back(store->fork());
  EXPECT_EQ(pool->pages(), 4 * kTables);
  EXPECT_EQ(pool->references(), 6 * 4 * kTables);
  const std::byte* before = static_cast<const std::byte*>(store->keys(0, 0).runs.back().k);
  for (uint32_t f = 0; f < 5; ++f) read(*forks[f], 100 + f, 3 * kPage + 5, 1);  // each copies its last page
  EXPECT_EQ(pool->pages(), (4 + 5) * kTables);
  EXPECT_EQ(store->keys(0, 0).runs.back().k, before);
  read(*store, 1, 3 * kPage + 5, 1);  // alone with its page by now: no copy
  EXPECT_EQ(pool->pages(), (4 + 5) * kTables);
  forks.clear();
  EXPECT_EQ(pool->pages(), 4 * kTables);
  store.reset();
  EXPECT_EQ(pool->pages(), 0);
  EXPECT_EQ(pool->bytes(), 0);
}

TEST(PagedStore, EqualPrefixesLieInMemoryOnce) {
  const auto opens = registry().make<StoreFactory>(parse_specs("paged:page=16")[0]);
  auto first = opens->open(kShape);
  read(*first, 1, 0, 10 * kPage);
  const int64_t alone = first->bytes();
  auto second = opens->open(kShape);  // of the same factory, read in other chunks
  for (int64_t t = 0; t < 10 * kPage; t += 7) read(*second, 1, t, std::min<int64_t>(7, 10 * kPage - t));
  EXPECT_EQ(first->keys(1, 1).runs[0].k, second->keys(1, 1).runs[0].k);
  EXPECT_LT(first->bytes() + second->bytes(), alone + 2048);
  read(*first, 1, 10 * kPage, 3);
  read(*second, 2, 10 * kPage, 3);
  EXPECT_LT(first->bytes() + second->bytes(), alone + 8 * kTables * 4096);  // of their own: the last pages
  // What is dropped by one stays with the other.
  std::vector<int64_t> odd;
  for (int64_t s = 1; s < 10 * kPage; s += 2) odd.push_back(s);
  std::vector<std::byte> row(static_cast<size_t>(kD * 2));
  std::memcpy(row.data(), second->keys(0, 0).runs[0].k, row.size());
  first->keep(0, 0, odd);
  first->clear();
  EXPECT_EQ(std::memcmp(row.data(), second->keys(0, 0).runs[0].k, row.size()), 0);
}

TEST(PagedStore, EqualHashesAreNotTrusted) {
  // Two pages that differ in one bit are never one, whatever the order in which they come.
  PagePool pool(3072, 1024);
  std::mt19937 random(9);
  std::vector<PagePool::Page*> pages;
  pool.take(65, nullptr, pages);
  std::vector<std::byte> content(4096);
  for (std::byte& b : content) b = static_cast<std::byte>(random());
  auto write = [&](const PagePool::Page& page) {
    std::memcpy(page.part[0], content.data(), 3072);
    std::memcpy(page.part[1], content.data() + 3072, 1024);
  };
  for (size_t p = 0; p < 65; ++p) {
    write(*pages[p]);
    if (p < 64) pages[p]->part[p / 48][p % 48 * 64] ^= static_cast<std::byte>(1u << p % 8);
    PagePool::Page* known = pool.find_equal(pages[p]);
    EXPECT_EQ(known, pages[p]);
    pages[p] = known;
  }
  std::vector<PagePool::Page*> again;
  pool.take(1, nullptr, again);
  write(*again[0]);
  again[0]->part[0][40 * 64] ^= std::byte{1};
  EXPECT_EQ(pool.find_equal(again[0]), pages[40]);
  EXPECT_FALSE(pool.own(pages[40]));
  EXPECT_EQ(pool.pages(), 65);
}

TEST(PagedStore, WholePagesMoveWithoutACopy) {
  auto store = make_paged_store(kShape, {.page = kPage, .share = false});
  read(*store, 1, 0, 8 * kPage);
  const std::byte* row = static_cast<const std::byte*>(store->keys(0, 0).runs[0].k);
  std::vector<int64_t> window;
  for (int64_t s = 2 * kPage; s < 8 * kPage; ++s) window.push_back(s);
  store->keep(0, 0, window);
  EXPECT_EQ(store->keys(0, 0).runs[0].k, row + 2 * kPage * kD * 2);
}

// Tables that grow together keep their pages side by side: kernels see long runs.
TEST(PagedStore, GrowsInLongRuns) {
  auto store = make_paged_store(kShape, {.page = kPage, .share = false});
  for (int64_t t = 0; t < 1200; ++t) read(*store, 1, t, 1);
  for (int layer = 0; layer < 2; ++layer)
    for (int head = 0; head < 2; ++head) EXPECT_LE(store->keys(layer, head).runs.size(), 4u);
}

TEST(PagedStore, GivesBackWhatKeepDrops) {
  const auto pool = pool_of();
  auto store = make_paged_store(kShape, {.page = kPage}, pool);
  read(*store, 1, 0, 1000 * kPage / 8);
  const int64_t before = store->bytes();
  EXPECT_EQ(store->bytes(), before);
  for (int layer = 0; layer < kShape.layers; ++layer)
    for (int head = 0; head < kShape.kv_heads; ++head) {
      std::vector<int64_t> every;
      for (int64_t s = head; s < 2000; s += 8) every.push_back(s);
      store->keep(layer, head, every);
    }
  EXPECT_EQ(pool->pages(), (250 + kPage - 1) / kPage * kTables);
  EXPECT_LT(store->bytes(), before / 6);
}

// Requests come and go at random, as a server sees them; lengths like those of the paper's conversations (a mean of
// some hundred tokens).
TEST(PagedStore, WastesUnderFourPercent) {
  const unsigned seed = 41;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const StoreShape shape{.layers = 1, .kv_heads = 1, .d = kD, .dv = kD, .codec = DType::kF16};
  const PagedOptions options{.page = kPage, .share = false};
  const auto pool = make_page_pool(shape, options);
  struct Request {
    std::unique_ptr<Store> store;
    int64_t length, held;
  };
  std::deque<Request> running;
  std::exponential_distribution<double> prompts(1 / 160.0), answers(1 / 340.0);
  int64_t worst_slots = 0, worst_held = 0, steps = 0;
  double waste = 0;
  for (int step = 0; step < 1500; ++step) {
    if (random() % 25 == 0) {
      const int64_t prompt = 1 + static_cast<int64_t>(prompts(random)),
                    answer = 1 + static_cast<int64_t>(answers(random));
      running.push_back({make_paged_store(shape, options, pool), prompt + answer, prompt});
      read(*running.back().store, static_cast<uint32_t>(step), 0, prompt);
    }
    for (Request& request : running) read(*request.store, 7, request.held++, 1);
    std::erase_if(running, [](const Request& r) { return r.held >= r.length; });
    int64_t held = 0;
    for (const Request& request : running) held += request.held;
    const int64_t slots = pool->pages() * kPage;
    ASSERT_LE(slots - held, static_cast<int64_t>(running.size()) * (kPage - 1));
    if (step < 300 || running.empty()) continue;
    waste += static_cast<double>(slots - held) / static_cast<double>(slots);
    ++steps;
    worst_slots = std::max(worst_slots, slots), worst_held = std::max(worst_held, held);
  }
  ASSERT_GT(steps, 1000);
  EXPECT_LT(waste / static_cast<double>(steps), 0.04);
  // Nor does memory grow beyond the pages in use by more than fragments of system pages and descriptions.
  EXPECT_LT(pool->bytes(), pool->pages() * 2 * kPage * kD * 2 * 11 / 10 + (1 << 16));
}

TEST(PagedStore, RefusesWhatDoesNotFit) {
  for (int64_t page : {int64_t{0}, int64_t{-1}, int64_t{65537}})
    test::expect_error(ErrorKind::kArgument, "page", [&] { make_paged_store(kShape, {.page = page}); });
  test::expect_error(ErrorKind::kArgument, "pool",
                     [&] { make_paged_store(kShape, {}, std::make_shared<PagePool>(2047, 2048)); });
}

}  // namespace
}  // namespace attend
