#pragma once
// Keys and values in pages: slot s of a head lies in row s % page of page s / page of the head's block table.
//
// Source   Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with PagedAttention,
//          arXiv:2309.06180, 4.1 to 4.4. Differs: a page holds the keys and values of one layer and kv head (a block of
//          the paper holds all heads), because heads may keep different numbers of keys; a page of equal content is
//          found by its bytes, not by its tokens, so it is shared whatever came before it.
//
// Sharing  fork() shares every page; the first append to a last page that is shared copies it (copy-on-write). A page
//          that becomes full is replaced by one of equal content if the pool knows one: equal prefixes of several texts
//          have equal bytes, whatever chunks they were read in, and lie in memory once.
// Waste    less than one page for each layer and kv head, and 56 bytes a page for what describes it.
// Cost     append O(rows), and a hash of each page that becomes full; keep O(rows after the first dropped), whole pages
//          that stay together move without being copied; fork O(pages).
#include <memory>

#include "attend/kv/page_pool.h"
#include "attend/kv/store.h"

namespace attend {

struct PagedOptions {
  int64_t page = 16;  // tokens, 1..65536
  bool share = true;  // pages of equal content
};

// The pool of stores of this shape. Throws Error(kArgument) as check_store_shape(), and for options out of range.
std::shared_ptr<PagePool> make_page_pool(const StoreShape& shape, const PagedOptions& options);

// `pool`: of make_page_pool() for equal rows and options, shared with other stores; null: one of its own.
// Throws Error(kArgument) as make_page_pool(), and for a pool of other pages.
std::unique_ptr<Store> make_paged_store(const StoreShape& shape, const PagedOptions& options,
                                        std::shared_ptr<PagePool> pool = nullptr);

}  // namespace attend
