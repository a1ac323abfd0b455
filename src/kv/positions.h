#pragma once
// The positions of a head's keys: held only where they differ from slots.
#include <fmt/format.h>

#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attend/tensor/error.h"

namespace attend::kv {

class Positions {
 public:
  int64_t at(int64_t slot) const { return listed_ ? all_[static_cast<size_t>(slot)] : slot; }
  // As a key view has them.
  std::span<const int32_t> view() const {
    return listed_ ? std::span<const int32_t>(all_) : std::span<const int32_t>();
  }
  int64_t bytes() const { return static_cast<int64_t>(all_.capacity() * sizeof(int32_t)); }

  // Throws Error(kArgument) if these do not ascend beyond those present.
  void check(std::span<const int32_t> position) const {
    int64_t previous = last_;
    for (int32_t p : position) {
      if (p <= previous)
        throw Error(ErrorKind::kArgument, "append", "position", std::to_string(p),
                    fmt::format("must ascend beyond {}", previous));
      previous = p;
    }
  }

  // Room for what add() adds to `count` of them, so that it can't fail.
  void reserve(int64_t count, std::span<const int32_t> position) {
    if (position.empty()) return;
    const int64_t t = static_cast<int64_t>(position.size());
    if (!listed_ && position.front() == count && position.back() == count + t - 1) return;
    if (const size_t wanted = static_cast<size_t>(count + t); wanted > all_.capacity())
      all_.reserve(wanted + wanted / 8);
    if (listed_) return;
    all_.resize(static_cast<size_t>(count));
    std::iota(all_.begin(), all_.end(), 0);
    listed_ = true;
  }
  void add(std::span<const int32_t> position) {
    if (position.empty()) return;
    if (listed_) all_.insert(all_.end(), position.begin(), position.end());
    last_ = position.back();
  }

  // The first `count` are left.
  void cut(int64_t count) {
    if (listed_) all_.resize(static_cast<size_t>(count));
    last_ = count == 0 ? -1 : static_cast<int32_t>(at(count - 1));
    if (count == 0) take({});
  }
  // These alone are left.
  void take(std::vector<int32_t> left) {
    last_ = left.empty() ? -1 : left.back();
    listed_ = !left.empty() && left.back() != static_cast<int32_t>(left.size()) - 1;
    all_ = listed_ ? std::move(left) : std::vector<int32_t>();
  }

 private:
  int32_t last_ = -1;
  bool listed_ = false;
  std::vector<int32_t> all_;
};

}  // namespace attend::kv
