#include "attend/lm/gguf.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "lm/gguf_parser.h"

namespace attend {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

bool is_integer(GgufType type) {
  return type != GgufType::kF32 && type != GgufType::kF64 && type != GgufType::kBool && type != GgufType::kText &&
         type != GgufType::kArray;
}

bool fits(GgufType type, uint64_t bits, int64_t min, int64_t max) {
  if (type == GgufType::kU64 && bits > static_cast<uint64_t>(INT64_MAX)) return false;
  const auto value = static_cast<int64_t>(bits);
  return value >= min && value <= max;
}

}  // namespace

struct Gguf::State {
  ~State() {
    if (mapping) munmap(mapping, mapped_bytes);
  }

  [[noreturn]] void fail(std::string_view rule) const { fail_gguf(name, rule); }

  const GgufValue* find(std::string_view key) const {
    const auto found = contents.values.find(key);
    return found == contents.values.end() ? nullptr : &found->second;
  }

  const GgufValue& at(std::string_view key) const {
    const GgufValue* value = find(key);
    if (!value) fail(fmt::format("lacks the key {}", key));
    return *value;
  }

  [[noreturn]] void fail_type(std::string_view key, const GgufValue& value, std::string_view wanted) const {
    std::string got(name_of(value.type));
    if (value.type == GgufType::kArray) got.append(" of ").append(name_of(value.element));
    fail(fmt::format("key {} is of type {}, not {}", key, got, wanted));
  }

  const GgufValue& array(std::string_view key, std::string_view wanted, bool (*accepts)(GgufType)) const {
    const GgufValue& value = at(key);
    if (value.type != GgufType::kArray || !accepts(value.element)) fail_type(key, value, wanted);
    return value;
  }

  std::string name;
  void* mapping = nullptr;
  size_t mapped_bytes = 0;
  GgufContents contents;
};

Gguf::Gguf(std::unique_ptr<State> state) : state_(std::move(state)) {}
Gguf::Gguf(Gguf&&) noexcept = default;
Gguf& Gguf::operator=(Gguf&&) noexcept = default;
Gguf::~Gguf() = default;

Gguf Gguf::open(const std::filesystem::path& path) {
  auto state = std::make_unique<State>();
  state->name = path.string();
  // Not to wait for the writer of a pipe; regular files are read as ever.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat info;
  if (file.fd < 0 || fstat(file.fd, &info) != 0) state->fail(fmt::format("can't be opened: {}", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) state->fail("is a directory");
  if (!S_ISREG(info.st_mode)) state->fail("is not a regular file");
  if (info.st_size == 0) state->fail("is empty");
  state->mapped_bytes = static_cast<size_t>(info.st_size);
  void* mapping = mmap(nullptr, state->mapped_bytes, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapping == MAP_FAILED) state->fail(fmt::format("can't be mapped: {}", std::strerror(errno)));
  state->mapping = mapping;
  state->contents = parse_gguf({static_cast<const std::byte*>(mapping), state->mapped_bytes}, state->name);
  return Gguf(std::move(state));
}

Gguf Gguf::parse(std::span<const std::byte> bytes, std::string name) {
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->contents = parse_gguf(bytes, state->name);
  return Gguf(std::move(state));
}

const std::string& Gguf::name() const {
  return state_->name;
}

std::span<const GgufTensor> Gguf::tensors() const {
  return state_->contents.tensors;
}

const GgufTensor* Gguf::find(std::string_view tensor) const {
  const auto& index = state_->contents.index;
  const auto found = index.find(tensor);
  return found == index.end() ? nullptr : &state_->contents.tensors[found->second];
}

const GgufTensor& Gguf::tensor(std::string_view name) const {
  const GgufTensor* found = find(name);
  if (!found) state_->fail(fmt::format("lacks the tensor {}", name));
  return *found;
}

bool Gguf::has(std::string_view key) const {
  return state_->find(key) != nullptr;
}

std::string_view Gguf::text(std::string_view key) const {
  const GgufValue& value = state_->at(key);
  if (value.type != GgufType::kText) state_->fail_type(key, value, "text");
  return value.text;
}

std::string_view Gguf::text(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : fallback;
}

int64_t Gguf::integer(std::string_view key, int64_t min, int64_t max) const {
  const GgufValue& value = state_->at(key);
  if (!is_integer(value.type)) state_->fail_type(key, value, "an integer");
  if (!fits(value.type, value.bits, min, max)) {
    const std::string got = value.type == GgufType::kU64 ? fmt::format("{}", value.bits)
                                                         : fmt::format("{}", static_cast<int64_t>(value.bits));
    state_->fail(fmt::format("key {} is {}, not within {} to {}", key, got, min, max));
  }
  return static_cast<int64_t>(value.bits);
}

int64_t Gguf::integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double Gguf::real(std::string_view key) const {
  const GgufValue& value = state_->at(key);
  if (value.type != GgufType::kF32 && value.type != GgufType::kF64) state_->fail_type(key, value, "f32 or f64");
  const double number = std::bit_cast<double>(value.bits);
  if (!std::isfinite(number)) state_->fail(fmt::format("key {} is {}, not finite", key, number));
  return number;
}

double Gguf::real(std::string_view key, double fallback) const {
  return has(key) ? real(key) : fallback;
}

bool Gguf::flag(std::string_view key, bool fallback) const {
  const GgufValue* value = state_->find(key);
  if (!value) return fallback;
  if (value->type != GgufType::kBool) state_->fail_type(key, *value, "bool");
  return value->bits != 0;
}

std::vector<std::string_view> Gguf::texts(std::string_view key) const {
  const GgufValue& value = state_->array(key, "an array of text", [](GgufType t) { return t == GgufType::kText; });
  std::vector<std::string_view> out;
  out.reserve(value.count);
  const std::byte *at = value.elements.data(), *end = at + value.elements.size();
  for (uint64_t i = 0; i < value.count; ++i) {
    // Parsing checked these lengths; a file that was written to since then must not lead out of the mapping.
    const uint64_t length = end - at >= 8 ? read_gguf_bits(GgufType::kU64, at) : UINT64_MAX;
    if (end - at < 8 || length > static_cast<uint64_t>(end - at - 8)) state_->fail("has changed while it was read");
    out.emplace_back(reinterpret_cast<const char*>(at + 8), length);
    at += 8 + length;
  }
  return out;
}

std::vector<float> Gguf::reals(std::string_view key) const {
  const GgufValue& value = state_->array(key, "an array of f32 or f64",
                                         [](GgufType t) { return t == GgufType::kF32 || t == GgufType::kF64; });
  std::vector<float> out(value.count);
  const std::byte* at = value.elements.data();
  for (uint64_t i = 0; i < value.count; ++i, at += size_of(value.element)) {
    out[i] = static_cast<float>(std::bit_cast<double>(read_gguf_bits(value.element, at)));
  }
  return out;
}

std::vector<int32_t> Gguf::integers(std::string_view key) const {
  const GgufValue& value =
      state_->array(key, "an array of integers", [](GgufType t) { return is_integer(t) || t == GgufType::kBool; });
  std::vector<int32_t> out(value.count);
  const std::byte* at = value.elements.data();
  for (uint64_t i = 0; i < value.count; ++i, at += size_of(value.element)) {
    const uint64_t bits = read_gguf_bits(value.element, at);
    if (!fits(value.element, bits, INT32_MIN, INT32_MAX)) {
      state_->fail(fmt::format("key {} has a number at index {} that is too large", key, i));
    }
    out[i] = static_cast<int32_t>(static_cast<int64_t>(bits));
  }
  return out;
}

void Gguf::release(std::span<const std::byte> bytes) const {
  const auto base = reinterpret_cast<uintptr_t>(state_->mapping);
  auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  if (!state_->mapping || begin < base || begin + bytes.size() > base + state_->mapped_bytes) return;
  // Whole pages, the first one too if only its end was asked for: what is read again comes from the file.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t end = begin + bytes.size();
  begin = begin / page * page;
  if (end < base + state_->mapped_bytes) end = end / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace attend
