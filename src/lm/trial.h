#pragma once
// Tokens that were read but may yet be taken back, and the queries whose weights wait to be summed until they stay.
#include <cstdint>
#include <span>
#include <vector>

namespace attend {

class Trial {
 public:
  struct Queries {
    std::vector<float> q, lse;  // [tokens, heads * d], [tokens, heads]
  };

  explicit Trial(size_t layers) : layers_(layers) {}

  bool open() const { return open_; }
  int64_t first() const { return first_; }  // position of the first token
  const std::vector<int32_t>& ids() const { return ids_; }
  const Queries& queries(int layer) const { return layers_[static_cast<size_t>(layer)]; }

  void add(int64_t position, std::span<const int32_t> ids) {
    if (!open_) first_ = position;
    open_ = true;
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }

  // Of new tokens: q [rows, heads * d], lse [heads, rows].
  void observe(int layer, std::span<const float> q, std::span<const float> lse, int64_t rows) {
    Queries& to = layers_[static_cast<size_t>(layer)];
    to.q.insert(to.q.end(), q.begin(), q.end());
    const size_t n = static_cast<size_t>(rows);
    for (size_t r = 0; r < n; ++r)
      for (size_t h = 0; h < lse.size() / n; ++h) to.lse.push_back(lse[h * n + r]);
  }

  void close() {
    open_ = false;
    ids_.clear();
    for (Queries& layer : layers_) layer.q.clear(), layer.lse.clear();
  }

 private:
  bool open_ = false;
  int64_t first_ = 0;
  std::vector<int32_t> ids_;
  std::vector<Queries> layers_;
};

}  // namespace attend
