#include <array>
#include <map>
#include <mutex>

#include "attend/kv/offloaded_store.h"
#include "attend/kv/paged_store.h"
#include "attend/kv/store.h"
#include "attend/kv/virtual_store.h"
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

struct VirtualFactory : StoreFactory {
  explicit VirtualFactory(const VirtualOptions& given) : options(given) {}
  std::unique_ptr<Store> open(const StoreShape& shape) const override { return make_virtual_store(shape, options); }
  VirtualOptions options;
};

constexpr Option kReserve = {
    "reserve", "tokens", "Tokens that addresses are reserved for; 0: the context.", "0", OptionType::kInteger,
    0,         1 << 30};

constexpr Option kVirtualOptions[] = {kReserve};

constexpr Paper kVirtualPapers[] = {
    {"vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention", "2405.04437", "210"}};

std::unique_ptr<Component> make_virtual(const Spec& spec) {
  return std::make_unique<VirtualFactory>(VirtualOptions{.reserve = spec.integer("reserve")});
}

struct OffloadedFactory : StoreFactory {
  explicit OffloadedFactory(const OffloadedOptions& given) : options(given) {}
  std::unique_ptr<Store> open(const StoreShape& shape) const override { return make_offloaded_store(shape, options); }
  OffloadedOptions options;
};

constexpr Option kOffloadedOptions[] = {
    {"resident", "MiB", "Keys and values in memory, but never less than three layers.", "256", OptionType::kInteger, 0,
     1 << 30},
    kReserve,
    {.name = "directory",
     .unit = "",
     .help = "Where the file lies; empty: $TMPDIR, else /tmp.",
     .fallback = "",
     .type = OptionType::kText,
     .min = 0,
     .max = 0,
     .path = true},
};

std::unique_ptr<Component> make_offloaded(const Spec& spec) {
  return std::make_unique<OffloadedFactory>(OffloadedOptions{
      .resident = spec.integer("resident"), .reserve = spec.integer("reserve"), .directory = spec.text("directory")});
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
    {.kind = Kind::kStore,
     .name = "virtual",
     .room = "kv",
     .equation = "slot s of a layer and head lies at row s of addresses reserved for the whole context",
     .summary = "One run of addresses for each layer and kv head, with memory only where keys lie, given back at once.",
     .options = kVirtualOptions,
     .in = {},
     .out = {},
     .papers = kVirtualPapers,
     .traits = {.exact_for = "every mechanism that reads keys", .forms = {}, .patterns = {}},
     .notes =
         "Pages are those of the operating system and come on first touch: the system, not attend, decides whether "
         "there is memory for one. Tokens beyond the reserve are an error.",
     .make = make_virtual},
    {.kind = Kind::kStore,
     .name = "offloaded",
     .room = "kv",
     .equation = "slot s of a layer and head lies at row s of its region of a file",
     .summary = "Keys and values in a mapped file: the next layer is read ahead, those that don't fit are evicted.",
     .options = kOffloadedOptions,
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "every mechanism that reads keys", .forms = {}, .patterns = {}},
     .notes =
         "The file has no name and goes with the store. Memory is bounded between steps; keys that are dropped from "
         "layers on disk pass through memory. On tmpfs nothing leaves memory. An input error of the disk ends the "
         "process.",
     .make = make_offloaded},
};

}  // namespace

void register_stores(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
}

}  // namespace attend
