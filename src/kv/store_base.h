#pragma once
// What all stores share: checks, coding of rows, positions, runs. A store on top of it only says where rows lie.
#include <memory>
#include <span>
#include <vector>

#include "attend/kv/store.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/context.h"

namespace attend::kv {

int64_t round_up(int64_t n, int64_t to);

// How much a capacity grows at once: an eighth of `tokens`, at least 32.
int64_t step_at(int64_t tokens);
int64_t round_to_step(int64_t tokens);

class StoreBase : public Store {
 public:
  // Throws as check_store_shape().
  explicit StoreBase(const StoreShape& shape);

  const StoreShape& shape() const final { return shape_; }
  void append(int layer, const View& k, const View& v, std::span<const int32_t> position) final;
  void append_coded(int layer, int head, const KeyView& keys) final;
  KeyView keys(int layer, int head) const final;
  void keep(int layer, int head, std::span<const int64_t> slots) final;
  void cut(int layer, int head, int64_t count) final;
  void clear() final;
  std::unique_ptr<Store> fork() const override;
  int64_t bytes() const final;

 protected:
  // Heads are counted through: layer * kv_heads + head.
  struct Place {
    std::byte *k, *v;
    int64_t rows;  // that lie behind one another from here on
  };

  // Makes room for `tokens` more rows in each of the heads [first, last), or throws and changes nothing that keys()
  // shows. Rows from count() on may be written then.
  virtual void reserve(size_t first, size_t last, int64_t tokens) = 0;

  // Where `slot` lies, below what was reserved.
  virtual Place place(size_t head, int64_t slot) const = 0;

  // Told that rows from `slot` on were written and are the head's now.
  virtual void written(size_t head, int64_t slot) { (void)head, (void)slot; }

  // Moves the rows of `slots` to the front, or throws and changes nothing. `slots` is not a prefix, nor empty.
  virtual void compact(size_t head, std::span<const int64_t> slots) = 0;

  // Gives back what count() no longer needs.
  virtual void shrink(size_t head) = 0;

  // The first slot that may have moved when rows from `slot` on were written.
  virtual int64_t first_moved(int64_t slot) const { return (void)slot, 0; }

  virtual int64_t row_memory() const = 0;  // bytes held for rows
  virtual std::unique_ptr<StoreBase> open_another() const = 0;

  // The rows of `slots` to the front, by memmove: for stores that may write every row.
  void move_rows(size_t head, std::span<const int64_t> slots);
  // Takes over counts and positions of `other`, whose rows this store already holds at the same slots.
  void share_positions(const StoreBase& other);

  int64_t count(size_t head) const { return heads_[head].count; }
  size_t heads() const { return heads_.size(); }
  int64_t k_row() const { return k_row_; }  // bytes
  int64_t v_row() const { return v_row_; }

 private:
  struct Head {
    int64_t count = 0;
    int32_t last = -1;  // position
    Buffer positions;   // empty: slot = position
    std::vector<KeyRun> runs;
  };

  size_t index(std::string_view op, int layer, int head) const;
  void check_layer(std::string_view op, int layer) const;
  void check_positions(size_t head, std::span<const int32_t> position) const;
  void make_positions(Head& head, int64_t tokens);
  void reserve_positions(Head& head, std::span<const int32_t> position);
  void add_positions(Head& head, std::span<const int32_t> position, int64_t tokens);
  void lessen(size_t head, int64_t kept, int64_t from);
  void publish(size_t head, int64_t from);

  StoreShape shape_;
  int64_t k_row_, v_row_;
  std::vector<Head> heads_;
  Context context_{1};
};

}  // namespace attend::kv
