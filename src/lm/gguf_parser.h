#pragma once
// What parsing a GGUF file yields: checked metadata and tensors, before anything asks for a key.
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "attend/lm/gguf.h"
#include "lm/gguf_types.h"

namespace attend {

struct GgufValue {
  GgufType type{};
  GgufType element{};                   // of an array
  uint64_t bits = 0;                    // of a number or bool, sign-extended; an f32 as f64
  std::string text;                     // of a text
  std::span<const std::byte> elements;  // of an array: its bytes in the file, all lengths checked
  uint64_t count = 0;                   // of an array
};

struct TransparentHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

struct GgufContents {
  std::unordered_map<std::string, GgufValue, TransparentHash, std::equal_to<>> values;
  std::vector<GgufTensor> tensors;
  std::deque<std::string> names;  // of the tensors: a deque never moves them
  std::unordered_map<std::string_view, size_t> index;
};

// Throws Error(kFile) or Error(kUnsupported) naming `name`.
GgufContents parse_gguf(std::span<const std::byte> bytes, std::string_view name);

// A number of an array or value, read as sign-extended bits (f32 as f64).
uint64_t read_gguf_bits(GgufType type, const std::byte* at);

[[noreturn]] void fail_gguf(std::string_view name, std::string_view rule);

}  // namespace attend
