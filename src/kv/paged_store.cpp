#include "attend/kv/paged_store.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "attend/tensor/error.h"
#include "kv/store_base.h"

namespace attend {
namespace {

using Page = PagePool::Page;

class PagedStore : public kv::StoreBase {
 public:
  PagedStore(const StoreShape& shape, const PagedOptions& options, std::shared_ptr<PagePool> pool)
      : StoreBase(shape), options_(options), page_(options.page), pool_(std::move(pool)), tables_(heads()) {}

  ~PagedStore() override { release_all(); }

  std::unique_ptr<Store> fork() const override {
    auto copy = std::make_unique<PagedStore>(shape(), options_, pool_);
    for (size_t h = 0; h < heads(); ++h) {
      copy->tables_[h] = tables_[h];
      pool_->add_reference(tables_[h]);
    }
    copy->share_positions(*this);
    return copy;
  }

 protected:
  void reserve(size_t first, size_t last, int64_t tokens) override {
    std::vector<std::vector<Page*>> fresh(last - first);
    std::vector<bool> copies(last - first);
    std::vector<Page*> old;
    old.reserve(last - first);
    try {
      for (size_t h = first; h < last; ++h) {
        std::vector<Page*>& table = tables_[h];
        const size_t pages = static_cast<size_t>(pages_for(count(h) + tokens));
        const bool copy = copies[h - first] = count(h) % page_ != 0 && !pool_->own(last_page(h));
        const size_t wanted = pages - std::min(pages, table.size()) + copy;
        if (wanted == 0) continue;
        const size_t before = table.size() - copy;
        pool_->take(static_cast<int64_t>(wanted), before ? table[before - 1] : nullptr, fresh[h - first]);
        if (pages > table.capacity()) table.reserve(std::max(pages, table.size() + table.size() / 8));
      }
    } catch (...) {
      for (const std::vector<Page*>& pages : fresh) pool_->release(pages);
      throw;
    }
    for (size_t h = first; h < last; ++h) {
      auto next = fresh[h - first].begin();
      if (copies[h - first]) {
        Page*& page = last_page(h);
        old.push_back(page);
        copy_rows(*page, 0, **next, 0, count(h) % page_);
        page = *next++;
      }
      tables_[h].insert(tables_[h].end(), next, fresh[h - first].end());
    }
    pool_->release(old);
  }

  Place place(size_t head, int64_t slot) const override {
    const Page& page = *tables_[head][static_cast<size_t>(slot / page_)];
    const int64_t row = slot % page_;
    return {page.part[0] + row * k_row(), page.part[1] + row * v_row(), page_ - row};
  }

  int64_t first_moved(int64_t slot) const override { return slot / page_ * page_; }

  void written(size_t head, int64_t slot) override {
    if (!options_.share) return;
    for (int64_t p = slot / page_; p < count(head) / page_; ++p) {
      Page*& page = tables_[head][static_cast<size_t>(p)];
      page = pool_->find_equal(page);
    }
  }

  // Pages that stay whole move by their entry; the others are written anew, for they may be shared.
  void compact(size_t head, std::span<const int64_t> slots) override {
    const std::vector<Page*>& table = tables_[head];
    const int64_t kept = static_cast<int64_t>(slots.size());
    std::vector<Page*> next(static_cast<size_t>(pages_for(kept))), fresh, stay, go;
    int64_t wanted = 0;
    const Page* after = nullptr;  // the last that stays before the first that is new
    for (int64_t p = 0; p < static_cast<int64_t>(next.size()); ++p) {
      const int64_t from = slots[static_cast<size_t>(p * page_)], rows = std::min(page_, kept - p * page_);
      if (from % page_ == 0 && slots[static_cast<size_t>(p * page_ + rows - 1)] == from + rows - 1)
        stay.push_back(next[static_cast<size_t>(p)] = table[static_cast<size_t>(from / page_)]);
      else
        ++wanted;
      if (wanted == 0) after = stay.back();
    }
    pool_->take(wanted, after, fresh);
    auto taken = fresh.begin();
    for (int64_t p = 0; p < static_cast<int64_t>(next.size()); ++p) {
      Page*& page = next[static_cast<size_t>(p)];
      if (page) continue;
      page = *taken++;
      const int64_t rows = std::min(page_, kept - p * page_);
      for (int64_t r = 0; r < rows;) {
        const int64_t from = slots[static_cast<size_t>(p * page_ + r)];
        int64_t n = 1;
        while (r + n < rows && slots[static_cast<size_t>(p * page_ + r + n)] == from + n && (from + n) % page_) ++n;
        copy_rows(*table[static_cast<size_t>(from / page_)], from % page_, *page, r, n);
        r += n;
      }
    }
    // A table may refer to one page several times: as often as it no longer does, a reference goes.
    std::vector<Page*> before = table;
    std::sort(before.begin(), before.end());
    std::sort(stay.begin(), stay.end());
    std::set_difference(before.begin(), before.end(), stay.begin(), stay.end(), std::back_inserter(go));
    tables_[head] = std::move(next);
    pool_->release(go);
  }

  void shrink(size_t head) override {
    std::vector<Page*>& table = tables_[head];
    const size_t pages = static_cast<size_t>(pages_for(count(head)));
    if (pages >= table.size()) return;
    pool_->release(std::span(table).subspan(pages));
    table.resize(pages);
    if (table.capacity() > 2 * pages + 16) table.shrink_to_fit();
  }

  int64_t row_memory() const override {
    int64_t tables = 0, references = 0;
    for (const std::vector<Page*>& table : tables_) {
      tables += static_cast<int64_t>(table.capacity() * sizeof(Page*));
      references += static_cast<int64_t>(table.size());
    }
    if (references == pool_->references()) return pool_->bytes() + tables;  // nobody else has a part
    std::vector<Page*> all;
    for (const std::vector<Page*>& table : tables_) all.insert(all.end(), table.begin(), table.end());
    return pool_->bytes_of(all) + tables;
  }

  std::unique_ptr<StoreBase> open_another() const override {
    return std::make_unique<PagedStore>(shape(), options_, pool_);
  }

 private:
  int64_t pages_for(int64_t tokens) const { return (tokens + page_ - 1) / page_; }
  Page*& last_page(size_t head) { return tables_[head][static_cast<size_t>(count(head) / page_)]; }

  void copy_rows(const Page& from, int64_t row, const Page& to, int64_t to_row, int64_t rows) const {
    const int64_t bytes[] = {k_row(), v_row()};
    for (size_t p = 0; p < 2; ++p)
      std::memcpy(to.part[p] + to_row * bytes[p], from.part[p] + row * bytes[p], static_cast<size_t>(rows * bytes[p]));
  }

  void release_all() {
    std::vector<Page*> all;
    for (std::vector<Page*>& table : tables_) {
      all.insert(all.end(), table.begin(), table.end());
      table.clear();
    }
    pool_->release(all);
  }

  PagedOptions options_;
  int64_t page_;
  std::shared_ptr<PagePool> pool_;
  std::vector<std::vector<Page*>> tables_;
};

}  // namespace

std::shared_ptr<PagePool> make_page_pool(const StoreShape& shape, const PagedOptions& options) {
  check_store_shape(shape);
  if (options.page < 1 || options.page > 65536)
    throw Error(ErrorKind::kArgument, "paged", "page", std::to_string(options.page), "must be 1..65536 tokens");
  return std::make_shared<PagePool>(options.page * row_bytes(shape.codec, shape.d),
                                    options.page * row_bytes(shape.v_codec, shape.dv));
}

std::unique_ptr<Store> make_paged_store(const StoreShape& shape, const PagedOptions& options,
                                        std::shared_ptr<PagePool> pool) {
  const auto own = make_page_pool(shape, options);
  if (!pool) pool = own;
  if (pool->part_bytes() != own->part_bytes())
    throw Error(ErrorKind::kArgument, "paged", "pool",
                fmt::format("pages of {} bytes", fmt::join(pool->part_bytes(), " and ")),
                fmt::format("must have pages of {} for this shape", fmt::join(own->part_bytes(), " and ")));
  return std::make_unique<PagedStore>(shape, options, std::move(pool));
}

}  // namespace attend
