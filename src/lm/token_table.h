#pragma once
// Texts numbered from 0 and found again: one arena, one table of open addressing. Loads a vocabulary of a quarter of a
// million tokens in some milliseconds.
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

class TokenTable {
 public:
  void reserve(size_t texts, size_t bytes) {
    bytes_.reserve(bytes);
    begins_.reserve(texts + 1);
    size_t capacity = 16;
    while (capacity < texts * 2) capacity *= 2;
    if (capacity > slots_.size()) rehash(capacity);
  }

  // The text's number, or -1.
  int32_t find(std::string_view text) const {
    if (slots_.empty()) return -1;
    const uint64_t hash = std::hash<std::string_view>{}(text);
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      const Slot slot = slots_[i];
      if (slot.number < 0) return -1;
      if (slot.tag == tag_of(hash) && at(slot.number) == text) return slot.number;
    }
  }

  // Numbers the text next whether it is known or not; only the first of equal texts is found. Returns whether it is
  // new.
  bool add(std::string_view text) {
    if ((static_cast<size_t>(size()) + 1) * 2 > slots_.size()) rehash(slots_.empty() ? 16 : slots_.size() * 2);
    const bool known = find(text) >= 0;
    bytes_.append(text);
    begins_.push_back(bytes_.size());
    if (!known) place(size() - 1);
    return !known;
  }

  // Numbers a text that nothing must find.
  void add_hidden(std::string_view text) {
    bytes_.append(text);
    begins_.push_back(bytes_.size());
  }

  std::string_view at(int32_t number) const {
    const auto i = static_cast<size_t>(number);
    return {bytes_.data() + begins_[i], begins_[i + 1] - begins_[i]};
  }

  int32_t size() const { return static_cast<int32_t>(begins_.size()) - 1; }

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t number = -1;
  };

  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  void place(int32_t number) {
    const uint64_t hash = std::hash<std::string_view>{}(at(number));
    size_t i = hash & mask_;
    while (slots_[i].number >= 0) i = (i + 1) & mask_;
    slots_[i] = {tag_of(hash), number};
  }

  void rehash(size_t capacity) {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(capacity, {});
    mask_ = capacity - 1;
    for (const Slot& slot : old) {
      if (slot.number >= 0) place(slot.number);
    }
  }

  std::string bytes_;
  std::vector<size_t> begins_{0};
  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

}  // namespace attend
