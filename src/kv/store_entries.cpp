#include <array>
#include <map>
#include <mutex>

#include "attend/kv/paged_store.h"
#include "attend/kv/store.h"
#include "kv/entries.h"

namespace attend {
namespace {

struct ContiguousFactory : StoreFactory {
  std::unique_ptr<Store> open(const StoreShape& shape) const override { return make_contiguous_store(shape); }
};

std::unique_ptr<Component> make_contiguous(const Spec&) {
  return std::make_unique<ContiguousFactory>();
}

// Stores of equal page size share a pool, and with it equal pages.
class PagedFactory : public StoreFactory {
 public:
  explicit PagedFactory(const PagedOptions& options) : options_(options) {}

  std::unique_ptr<Store> open(const StoreShape& shape) const override {
    const auto fresh = make_page_pool(shape, options_);
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<PagePool>& pool = pools_.try_emplace(fresh->part_bytes(), fresh).first->second;
    return make_paged_store(shape, options_, pool);
  }

 private:
  PagedOptions options_;
  mutable std::mutex mutex_;
  mutable std::map<std::array<int64_t, 2>, std::shared_ptr<PagePool>> pools_;
};

constexpr Option kPagedOptions[] = {
    {"page", "tokens", "Keys in a page.", "16", OptionType::kInteger, 1, 65536},
    {"share", "", "Full pages of equal content lie in memory once.", "true", OptionType::kFlag, 0, 1},
};

constexpr Paper kPagedPapers[] = {
    {"Efficient Memory Management for Large Language Model Serving with PagedAttention", "2309.06180", "229"}};

std::unique_ptr<Component> make_paged(const Spec& spec) {
  return std::make_unique<PagedFactory>(PagedOptions{.page = spec.integer("page"), .share = spec.flag("share")});
}

constexpr Entry kEntries[] = {
    {.kind = Kind::kStore,
     .name = "contiguous",
     .room = "kv",
     .equation = "slot s of a layer and head lies at row s of one buffer",
     .summary = "One buffer for each layer and kv head, which grows with use and shrinks when keys are dropped.",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "every mechanism that reads keys", .forms = {}, .patterns = {}},
     .notes = {},
     .make = make_contiguous},
    {.kind = Kind::kStore,
     .name = "paged",
     .room = "kv",
     .equation = "slot s of a layer and head lies in row s mod page of the page that entry s / page of its table names",
     .summary = "Pages from a pool, in any order: forks share them until one writes, equal pages lie in memory once.",
     .options = kPagedOptions,
     .in = {},
     .out = {},
     .papers = kPagedPapers,
     .traits = {.exact_for = "every mechanism that reads keys", .forms = {}, .patterns = {}},
     .notes = "A page holds one layer and kv head, so that heads may keep different keys. Pages are shared by content "
              "(compared byte by byte), not by token, among the stores of one factory: forks, and sequences with equal "
              "prefixes.",
     .make = make_paged},
};

}  // namespace

void register_stores(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
