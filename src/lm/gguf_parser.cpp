// GGUF version 3, little-endian:
//
//   file     "GGUF", u32 version = 3, u64 tensors, u64 keys, key[keys], tensor[tensors], padding, data
//   key      text name, u32 type, value of that type
//   text     u64 bytes, the bytes (UTF-8, no terminator)
//   array    u32 element type, u64 count, the elements; an element is no array
//   tensor   text name, u32 rank (1..4), u64 extent[rank] (innermost first), u32 type, u64 offset
//   data     begins at the next multiple of general.alignment (a power of two, 32 by default);
//            a tensor lies at data + offset, offset a multiple of the alignment
//
// Source: docs/gguf.md of ggml. Nothing in the file is believed before it is checked against the bytes that are there.
#include "lm/gguf_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

static_assert(std::endian::native == std::endian::little);

// Far above any model's; they keep tables made from hostile counts small.
constexpr uint64_t kMaxKeys = 1 << 16, kMaxTensors = 1 << 18, kMaxNameBytes = 256;
constexpr uint64_t kDefaultAlignment = 32, kMaxAlignment = 1 << 20;

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  GgufContents parse() {
    const auto [tensor_count, key_count] = read_header();
    for (uint64_t i = 0; i < key_count; ++i) read_key();
    uint64_t alignment = kDefaultAlignment;
    if (const auto found = contents_.values.find("general.alignment"); found != contents_.values.end()) {
      alignment = found->second.bits;
      if (found->second.type != GgufType::kU32) fail("general.alignment is not of type u32");
      if (!std::has_single_bit(alignment) || alignment > kMaxAlignment) {
        fail(fmt::format("general.alignment {} is not a power of two up to {}", alignment, kMaxAlignment));
      }
    }
    offsets_.reserve(tensor_count);
    for (uint64_t i = 0; i < tensor_count; ++i) read_tensor(alignment);
    const uint64_t data = (at_ + alignment - 1) / alignment * alignment;
    place_tensors(data);
    return std::move(contents_);
  }

 private:
  [[noreturn]] void fail(std::string_view rule) const { fail_gguf(name_, rule); }

  uint64_t left() const { return bytes_.size() - at_; }

  const std::byte* take(uint64_t count, std::string_view what) {
    if (count > left()) fail(fmt::format("is truncated or damaged: {} reaches beyond the end of the file", what));
    const std::byte* p = bytes_.data() + at_;
    at_ += count;
    return p;
  }

  template <class T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string_view read_text(std::string_view what) {
    const auto length = read<uint64_t>(what);
    return {reinterpret_cast<const char*>(take(length, what)), length};
  }

  std::string_view read_name(std::string_view what) {
    const std::string_view text = read_text(what);
    if (text.empty()) fail(fmt::format("has an empty {}", what));
    if (text.size() > kMaxNameBytes) fail(fmt::format("has a {} of more than {} bytes", what, kMaxNameBytes));
    const bool control = std::any_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x20; });
    if (control || !is_valid_utf8(text)) {
      fail(fmt::format("has a {} '{}' with control characters or invalid UTF-8", what, printable(text)));
    }
    return text;
  }

  std::pair<uint64_t, uint64_t> read_header() {
    if (bytes_.empty()) fail("is empty");
    if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) fail("is not a GGUF file");
    at_ = 4;
    const auto version = read<uint32_t>("the header");
    if (version != 3) {
      if (__builtin_bswap32(version) <= 3) {
        throw Error(ErrorKind::kUnsupported, "gguf", "file", printable(name_), "is big-endian, which is not supported");
      }
      throw Error(ErrorKind::kUnsupported, "gguf", "file", printable(name_),
                  fmt::format("GGUF version {} is not supported; supported: 3", version));
    }
    const auto tensors = read<uint64_t>("the header"), keys = read<uint64_t>("the header");
    constexpr uint64_t kKeyBytes = 8 + 1 + 4 + 1, kTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // the least of each
    if (keys > kMaxKeys || keys > left() / kKeyBytes)
      fail(fmt::format("is truncated or damaged: it claims {} keys, more than fit", keys));
    if (tensors > kMaxTensors || tensors > left() / kTensorBytes) {
      fail(fmt::format("is truncated or damaged: it claims {} tensors, more than fit", tensors));
    }
    return {tensors, keys};
  }

  GgufType read_type(std::string_view key) {
    const auto type = read<uint32_t>("a value's type");
    if (type >= kGgufTypeCount) fail(fmt::format("key {} has an unknown value type {}", printable(key), type));
    return static_cast<GgufType>(type);
  }

  void check_bool(const std::byte* value, std::string_view key) const {
    if (static_cast<uint8_t>(*value) > 1) fail(fmt::format("key {} has a bool that is neither 0 nor 1", key));
  }

  void read_key() {
    const std::string_view key = read_name("key");
    GgufValue value;
    value.type = read_type(key);
    if (value.type == GgufType::kText) {
      value.text = read_text(key);
    } else if (value.type == GgufType::kArray) {
      read_array(key, value);
    } else {
      const std::byte* p = take(size_of(value.type), key);
      if (value.type == GgufType::kBool) check_bool(p, key);
      value.bits = read_gguf_bits(value.type, p);
    }
    if (!contents_.values.emplace(key, std::move(value)).second) fail(fmt::format("has the key {} twice", key));
  }

  void read_array(std::string_view key, GgufValue& value) {
    value.element = read_type(key);
    value.count = read<uint64_t>(key);
    if (value.element == GgufType::kArray) fail(fmt::format("key {} is an array of arrays", key));
    const uint64_t size = size_of(value.element);
    if (value.count > left() / (size ? size : sizeof(uint64_t))) {
      fail(fmt::format("is truncated or damaged: key {} claims {} elements, more than fit", key, value.count));
    }
    const uint64_t begin = at_;
    if (size) {
      const std::byte* p = take(size * value.count, key);
      for (uint64_t i = 0; value.element == GgufType::kBool && i < value.count; ++i) check_bool(p + i, key);
    } else {
      for (uint64_t i = 0; i < value.count; ++i) read_text(key);
    }
    value.elements = bytes_.subspan(begin, at_ - begin);
  }

  void read_tensor(uint64_t alignment) {
    const std::string& name = contents_.names.emplace_back(read_name("tensor name"));
    GgufTensor tensor{.name = name, .type = WeightType::kF32, .rank = 0, .shape = {1, 1, 1, 1}, .data = {}};
    const auto rank = read<uint32_t>(name);
    if (rank < 1 || rank > 4) fail(fmt::format("tensor {} has rank {}, not 1 to 4", name, rank));
    tensor.rank = static_cast<int>(rank);
    int64_t count = 1;
    for (int axis = tensor.rank - 1; axis >= 0; --axis) {
      const auto extent = read<uint64_t>(name);
      if (extent == 0 || extent > INT64_MAX || __builtin_mul_overflow(count, static_cast<int64_t>(extent), &count)) {
        fail(fmt::format("tensor {} has an extent of {}, zero or too large", name, extent));
      }
      tensor.shape[static_cast<size_t>(axis)] = static_cast<int64_t>(extent);
    }
    const auto type = read<uint32_t>(name);
    const auto* format = std::find_if(std::begin(kWeightFormats), std::end(kWeightFormats),
                                      [&](const WeightFormat& f) { return f.gguf_type == type; });
    if (format == std::end(kWeightFormats)) fail_type(type, name);
    tensor.type = format->type;
    const int64_t columns = tensor.shape[static_cast<size_t>(tensor.rank - 1)];
    if (columns % format->block_elements != 0) {
      fail(fmt::format("tensor {} has rows of {} elements, not a multiple of {}'s block of {}", name, columns,
                       format->name, format->block_elements));
    }
    int64_t size = 0;
    if (__builtin_mul_overflow(count / format->block_elements, format->block_bytes, &size)) {
      fail(fmt::format("tensor {} is too large", name));
    }
    const auto offset = read<uint64_t>(name);
    if (offset % alignment != 0) {
      fail(fmt::format("tensor {} lies at offset {}, not a multiple of {}", name, offset, alignment));
    }
    if (!contents_.index.emplace(name, contents_.tensors.size()).second)
      fail(fmt::format("has the tensor {} twice", name));
    contents_.tensors.push_back(tensor);
    offsets_.push_back({offset, static_cast<uint64_t>(size), contents_.tensors.size() - 1});
  }

  [[noreturn]] void fail_type(uint32_t type, std::string_view tensor) const {
    std::string supported;
    for (const WeightFormat& format : kWeightFormats)
      supported.append(supported.empty() ? "" : ", ").append(format.name);
    throw Error(ErrorKind::kUnsupported, "gguf", "file", printable(name_),
                fmt::format("tensor type {} is not supported; supported: {} (tensor {})", tensor_type_name(type),
                            supported, printable(tensor)));
  }

  void place_tensors(uint64_t data) {
    std::sort(offsets_.begin(), offsets_.end(), [](const Place& a, const Place& b) { return a.offset < b.offset; });
    uint64_t free_from = 0;
    for (const Place& place : offsets_) {
      GgufTensor& tensor = contents_.tensors[place.tensor];
      if (data > bytes_.size() || place.offset > bytes_.size() - data ||
          place.size > bytes_.size() - data - place.offset) {
        fail(fmt::format("is truncated or damaged: tensor {} reaches beyond the end of the file", tensor.name));
      }
      if (place.offset < free_from) fail(fmt::format("tensor {} overlaps another", tensor.name));
      free_from = place.offset + place.size;
      tensor.data = bytes_.subspan(data + place.offset, place.size);
    }
  }

  struct Place {
    uint64_t offset, size;
    size_t tensor;
  };

  std::span<const std::byte> bytes_;
  std::string_view name_;
  uint64_t at_ = 0;
  GgufContents contents_;
  std::vector<Place> offsets_;
};

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

}  // namespace

uint64_t read_gguf_bits(GgufType type, const std::byte* at) {
  const auto of = [](int64_t value) { return static_cast<uint64_t>(value); };
  switch (type) {
    case GgufType::kU8:
    case GgufType::kBool:
      return load<uint8_t>(at);
    case GgufType::kI8:
      return of(load<int8_t>(at));
    case GgufType::kU16:
      return load<uint16_t>(at);
    case GgufType::kI16:
      return of(load<int16_t>(at));
    case GgufType::kU32:
      return load<uint32_t>(at);
    case GgufType::kI32:
      return of(load<int32_t>(at));
    case GgufType::kF32:
      return std::bit_cast<uint64_t>(static_cast<double>(load<float>(at)));
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return load<uint64_t>(at);
    case GgufType::kText:
    case GgufType::kArray:
      break;
  }
  return 0;
}

GgufContents parse_gguf(std::span<const std::byte> bytes, std::string_view name) {
  return Parser(bytes, name).parse();
}

void fail_gguf(std::string_view name, std::string_view rule) {
  throw Error(ErrorKind::kFile, "gguf", "file", printable(name), printable(rule, 1000));
}

}  // namespace attend
