#include "attend/kv/page_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "attend/tensor/error.h"
#include "kv/checksum.h"
#include "kv/mapping.h"

namespace attend {
namespace {

// A table that grows page by page finds its next page free for this many bytes: its runs are then long, which is what
// prefetching needs. What is never touched costs addresses only: at most kSpare bytes beyond twice what is in use.
constexpr int64_t kCluster = 512 << 10, kClusters = 8, kSpare = 1 << 30;

std::array<int64_t, 2> checked(int64_t k_bytes, int64_t v_bytes) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (k_bytes < 1 || v_bytes < 1 || k_bytes > kMost || v_bytes > kMost)
    throw Error(ErrorKind::kArgument, "page pool", "page", fmt::format("{} and {} bytes", k_bytes, v_bytes),
                "must be 1..2^31 each");
  return {k_bytes, v_bytes};
}

}  // namespace

struct PagePool::Slab {
  struct Part {
    kv::Mapping memory;
    std::vector<bool> resident;  // of system pages: in use since they were given back
  };
  std::array<Part, 2> parts;
  kv::Mapping descriptions;  // Page[]; all zero until one is taken
  std::vector<int64_t> used_in_cluster;
  int64_t used = 0;
  int64_t lowest = 0;  // no page below is free

  const std::byte* address() const { return parts[0].memory.data(); }
  const std::byte* key(int64_t index) const { return reinterpret_cast<const std::byte*>(&page(index)); }
  Page& page(int64_t index) const { return reinterpret_cast<Page*>(descriptions.data())[index]; }
  int64_t index(const Page& page) const { return &page - reinterpret_cast<const Page*>(descriptions.data()); }
};

PagePool::PagePool(int64_t k_bytes, int64_t v_bytes)
    : part_bytes_(checked(k_bytes, v_bytes)),
      cluster_pages_(std::max<int64_t>(1, kCluster / (k_bytes + v_bytes))),
      slab_pages_(kClusters * cluster_pages_),
      system_page_(kv::system_page()) {}

PagePool::~PagePool() = default;

void PagePool::grow() {
  auto slab = std::make_unique<Slab>();
  for (size_t i = 0; i < 2; ++i) {
    Slab::Part& part = slab->parts[i];
    part.memory = kv::Mapping(slab_pages_ * part_bytes_[i]);
    part.resident.resize(static_cast<size_t>((part.memory.bytes() - 1) / system_page_ + 1));
  }
  slab->descriptions = kv::Mapping(slab_pages_ * static_cast<int64_t>(sizeof(Page)));
  slab->used_in_cluster.resize(kClusters);
  slabs_.reserve(slabs_.size() + 1);
  with_room_.insert({slab->address(), slab.get()});
  for (int64_t p = 0; p < slab_pages_; p += cluster_pages_) free_clusters_[slab->key(p)] = {slab.get(), p};
  slabs_.push_back(std::move(slab));
}

// A free page, by its index. Throws Error(kMemory).
std::pair<PagePool::Slab*, int64_t> PagePool::pick(const Page* after) {
  if (after) {
    Slab& slab = *after->slab;
    const int64_t next = slab.index(*after) + 1;
    if (next < slab_pages_ && slab.page(next).references == 0 &&
        (next % cluster_pages_ || slab.used_in_cluster[static_cast<size_t>(next / cluster_pages_)] == 0))
      return {&slab, next};
  }
  const int64_t spare = static_cast<int64_t>(slabs_.size()) * slab_pages_ - 2 * pages_;
  if (with_room_.empty() || (free_clusters_.empty() && spare < kSpare / (part_bytes_[0] + part_bytes_[1]))) grow();
  if (!free_clusters_.empty()) return free_clusters_.begin()->second;
  Slab& slab = *with_room_.begin()->second;
  while (slab.page(slab.lowest).references) ++slab.lowest;
  return {&slab, slab.lowest};
}

void PagePool::take(int64_t count, const Page* after, std::vector<Page*>& pages) {
  const size_t before = pages.size();
  pages.reserve(before + static_cast<size_t>(count));
  try {
    const std::lock_guard lock(mutex_);
    for (int64_t i = 0; i < count; ++i) {
      auto [slab_of, index] = pick(after);
      Slab& slab = *slab_of;
      const int64_t cluster = index / cluster_pages_;
      if (slab.used_in_cluster[static_cast<size_t>(cluster)]++ == 0)
        free_clusters_.erase(slab.key(cluster * cluster_pages_));
      if (++slab.used == slab_pages_) with_room_.erase({slab.address(), &slab});
      Page& page = slab.page(index);
      page = {
          {slab.parts[0].memory.data() + index * part_bytes_[0], slab.parts[1].memory.data() + index * part_bytes_[1]},
          &slab,
          1,
          false,
          0};
      ++pages_, ++references_;
      for (size_t p = 0; p < 2; ++p) {
        Slab::Part& part = slab.parts[p];
        const int64_t last = ((index + 1) * part_bytes_[p] - 1) / system_page_;
        for (int64_t s = index * part_bytes_[p] / system_page_; s <= last; ++s)
          if (!part.resident[static_cast<size_t>(s)]) part.resident[static_cast<size_t>(s)] = true, ++resident_;
      }
      pages.push_back(&page);
      after = &page;
    }
  } catch (...) {
    release(std::span(pages).subspan(before));
    pages.resize(before);
    throw;
  }
}

void PagePool::add_reference(std::span<Page* const> pages) {
  const std::lock_guard lock(mutex_);
  for (Page* page : pages) ++page->references;
  references_ += static_cast<int64_t>(pages.size());
}

void PagePool::release(std::span<Page* const> pages) {
  if (pages.empty()) return;
  const std::lock_guard lock(mutex_);
  std::vector<Page*> freed;
  for (Page* page : pages) {
    if (--page->references) continue;
    if (page->known) by_hash_.erase(page->hash), page->known = false;
    freed.push_back(page);
  }
  references_ -= static_cast<int64_t>(pages.size());
  if (!freed.empty()) give_back(freed);
}

// Of pages without references: what lies between pages in use goes back to the system.
void PagePool::give_back(std::vector<Page*>& freed) {
  pages_ -= static_cast<int64_t>(freed.size());
  for (Page* page : freed) {
    Slab& slab = *page->slab;
    const int64_t index = slab.index(*page);
    if (slab.used-- == slab_pages_) with_room_.insert({slab.address(), &slab});
    const int64_t cluster = index / cluster_pages_;
    if (--slab.used_in_cluster[static_cast<size_t>(cluster)] == 0)
      free_clusters_[slab.key(cluster * cluster_pages_)] = {&slab, cluster * cluster_pages_};
    slab.lowest = std::min(slab.lowest, index);
  }
  std::sort(freed.begin(), freed.end(), [](const Page* a, const Page* b) { return a->part[0] < b->part[0]; });
  for (size_t p = 0; p < 2; ++p) {
    const int64_t bytes = part_bytes_[p];
    auto is_free = [&](const Slab& slab, int64_t s) {
      const int64_t last = std::min(slab_pages_ - 1, ((s + 1) * system_page_ - 1) / bytes);
      for (int64_t page = s * system_page_ / bytes; page <= last; ++page)
        if (slab.page(page).references) return false;
      return true;
    };
    Slab* of = nullptr;
    int64_t begin = 0, end = 0;  // system pages that go together
    auto flush = [&] {
      if (begin < end) of->parts[p].memory.give_back(begin * system_page_, end * system_page_);
      begin = end = 0;
    };
    for (const Page* page : freed) {
      if (page->slab != of) flush();
      of = page->slab;
      const int64_t index = of->index(*page);
      for (int64_t s = index * bytes / system_page_; s <= ((index + 1) * bytes - 1) / system_page_; ++s) {
        auto resident = of->parts[p].resident[static_cast<size_t>(s)];
        if (!resident || !is_free(*of, s)) continue;
        resident = false;
        --resident_;
        if (s != end) flush(), begin = s;
        end = s + 1;
      }
    }
    flush();
  }
  std::erase_if(slabs_, [&](const std::unique_ptr<Slab>& slab) {
    if (slab->used) return false;
    with_room_.erase({slab->address(), slab.get()});
    for (int64_t page = 0; page < slab_pages_; page += cluster_pages_) free_clusters_.erase(slab->key(page));
    return true;
  });
}

bool PagePool::own(Page* page) {
  const std::lock_guard lock(mutex_);
  if (page->references > 1) return false;
  if (page->known) by_hash_.erase(page->hash), page->known = false;
  return true;
}

PagePool::Page* PagePool::find_equal(Page* page) {
  const uint64_t hash = kv::checksum(page->part[1], part_bytes_[1], kv::checksum(page->part[0], part_bytes_[0]));
  const std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) {
    try {
      page->known = by_hash_.emplace(hash, page).second;
    } catch (const std::bad_alloc&) {  // then nobody will share it
    }
    page->hash = hash;
    return page;
  }
  Page* other = found->second;
  auto differs = [&](size_t p) {
    return std::memcmp(other->part[p], page->part[p], static_cast<size_t>(part_bytes_[p])) != 0;
  };
  if (other == page || differs(0) || differs(1)) return page;
  ++other->references;
  if (--page->references == 0) {
    std::vector<Page*> freed = {page};
    give_back(freed);
  }
  return other;
}

int64_t PagePool::pages() const {
  const std::lock_guard lock(mutex_);
  return pages_;
}

int64_t PagePool::references() const {
  const std::lock_guard lock(mutex_);
  return references_;
}

int64_t PagePool::bytes() const {
  const std::lock_guard lock(mutex_);
  return total_bytes();
}

int64_t PagePool::total_bytes() const {
  return resident_ * system_page_ + pages_ * static_cast<int64_t>(sizeof(Page));
}

int64_t PagePool::bytes_of(std::span<Page* const> pages) const {
  const std::lock_guard lock(mutex_);
  if (pages_ == 0) return 0;
  double share = 0;
  for (const Page* page : pages) share += 1.0 / page->references;
  return static_cast<int64_t>(share / static_cast<double>(pages_) * static_cast<double>(total_bytes()));
}

}  // namespace attend
