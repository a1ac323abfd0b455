#pragma once
// Memory cut into pages that stores take, share and give back.
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace attend {

// Safe for use by several threads. A page has two parts, keys and values, which lie apart: parts of pages that follow
// one another then do so too, and a kernel reads them as one run. Memory of free pages goes back to the system.
class PagePool {
 public:
  struct Slab;
  struct Page {
    std::array<std::byte*, 2> part;
    Slab* slab;
    int32_t references;  // 0: free
    bool known;          // find_equal() gives it out
    uint64_t hash;       // of its content, if known
  };

  // Bytes of the two parts. Throws Error(kArgument) unless both are 1..2^31.
  PagePool(int64_t k_bytes, int64_t v_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const std::array<int64_t, 2>& part_bytes() const { return part_bytes_; }

  // Appends `count` pages with one reference each, uninitialised; if possible they follow `after` (null: no page), or
  // begin where some can follow them. Throws Error(kMemory), and then takes none.
  void take(int64_t count, const Page* after, std::vector<Page*>& pages);

  void add_reference(std::span<Page* const> pages);
  void release(std::span<Page* const> pages);

  // Whether the caller may write the page: it alone refers to it. Such a page is no longer found by content.
  bool own(Page* page);

  // Of a page that is full and will not be written before own(): the page of equal content if the pool knows one, to
  // which the caller's reference moves, else the page itself, known from now on. Content is compared, whatever its
  // hash.
  Page* find_equal(Page* page);

  int64_t pages() const;       // with references
  int64_t references() const;  // of all pages
  // Of memory that pages in use occupy, of fragments between them, and of what describes pages.
  int64_t bytes() const;
  // The part of bytes() of these references: a page with n of them counts for one in n.
  int64_t bytes_of(std::span<Page* const> pages) const;

 private:
  std::pair<Slab*, int64_t> pick(const Page* after);
  void grow();
  void give_back(std::vector<Page*>& freed);
  int64_t total_bytes() const;

  const std::array<int64_t, 2> part_bytes_;
  const int64_t cluster_pages_, slab_pages_, system_page_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  std::set<std::pair<const std::byte*, Slab*>> with_room_;               // in order of address
  std::map<const std::byte*, std::pair<Slab*, int64_t>> free_clusters_;  // their first pages
  std::unordered_map<uint64_t, Page*> by_hash_;
  int64_t pages_ = 0, references_ = 0, resident_ = 0;
};

}  // namespace attend
