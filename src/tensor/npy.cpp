// The format: "\x93NUMPY", version (major, minor), header length (2 bytes in version 1, 4 in 2 and 3; little endian),
// a header that is a Python dictionary {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } padded with spaces,
// then the elements.
#include "attend/tensor/npy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kMaxHeader = 1 << 16;
constexpr int64_t kMaxCount = int64_t{1} << 44;

[[noreturn]] void fail(std::string_view name, std::string_view rule) {
  throw Error(ErrorKind::kFile, "npy", "file", fmt::format("\"{}\"", name), rule);
}

struct Header {
  DType type = DType::kF32;
  bool fortran = false;
  int rank = 0;
  Shape shape{};
  int64_t count = 1;
};

struct TypeName {
  std::string_view code;  // without the byte order
  DType type;
};
constexpr TypeName kTypes[] = {{"f4", DType::kF32}, {"f2", DType::kF16}, {"u2", DType::kBF16}, {"f8", DType::kF64},
                               {"i4", DType::kI32}, {"i8", DType::kI64}, {"b1", DType::kBool}};

class HeaderReader {
 public:
  HeaderReader(std::string_view text, std::string_view name) : text_(text), name_(name) {}

  Header read() {
    expect('{');
    bool seen[3] = {};
    while (!take('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr") {
        once(seen[0]);
        header_.type = type_of(quoted());
      } else if (key == "fortran_order") {
        once(seen[1]);
        header_.fortran = boolean();
      } else if (key == "shape") {
        once(seen[2]);
        shape();
      } else {
        fail(name_, "its header has an unknown key");
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (!(seen[0] && seen[1] && seen[2]) || at_ != text_.size()) fail(name_, "its header is malformed");
    return header_;
  }

 private:
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool take(char c) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(name_, "its header is malformed");
  }
  void once(bool& seen) {
    if (seen) fail(name_, "its header repeats a key");
    seen = true;
  }
  std::string_view quoted() {
    const char quote = take('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const size_t from = at_;
    at_ = text_.find(quote, from);
    if (at_ == std::string_view::npos) fail(name_, "its header is malformed");
    return text_.substr(from, at_++ - from);
  }
  bool boolean() {
    skip_spaces();
    for (const std::string_view word : {std::string_view("True"), std::string_view("False")}) {
      if (text_.substr(at_).starts_with(word)) return at_ += word.size(), word == "True";
    }
    fail(name_, "its fortran_order is neither True nor False");
  }
  DType type_of(std::string_view descr) {
    for (const TypeName& known : kTypes) {
      if (descr.size() != 3 || descr.substr(1) != known.code) continue;
      if (descr[0] == '<' || descr[0] == '=' || (descr[0] == '|' && known.type == DType::kBool)) return known.type;
    }
    fail(name_, fmt::format("its type {} is not supported; supported: <f4, <f2, <u2 (bf16), <f8, <i4, <i8, |b1",
                            descr.substr(0, 16)));
  }
  void shape() {
    expect('(');
    while (!take(')')) {
      if (header_.rank == kMaxRank) fail(name_, fmt::format("it has more than {} axes", kMaxRank));
      skip_spaces();
      int64_t extent = -1;
      const char* from = text_.data() + at_;
      const auto [end, error] = std::from_chars(from, text_.data() + text_.size(), extent);
      if (error != std::errc() || extent < 0) fail(name_, "its shape is malformed");
      at_ += static_cast<size_t>(end - from);
      header_.shape[header_.rank++] = extent;
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    int64_t bound = 1;  // of strides too, where an axis is empty
    for (int a = 0; a < header_.rank; ++a) {
      const int64_t extent = header_.shape[a];
      if (extent > kMaxCount / bound) fail(name_, "its shape is too large");
      header_.count *= extent;
      bound *= std::max<int64_t>(1, extent);
    }
  }

  std::string_view text_, name_;
  size_t at_ = 0;
  Header header_;
};

void from_fortran(const View& view, const std::byte* data) {
  const int64_t size = size_of(view.type), count = view.count();
  Shape index{};
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset = 0;
    for (int a = 0; a < view.rank; ++a) offset += index[a] * view.stride[a];
    std::memcpy(view.as<std::byte>() + offset * size, data + i * size, static_cast<size_t>(size));
    for (int a = 0; a < view.rank && ++index[a] == view.shape[a]; ++a) index[a] = 0;
  }
}

std::string reason() {
  return std::generic_category().message(errno);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int close_now() { return close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

std::string header_text(const View& view) {
  require_array_type(view.type);
  std::string_view code;
  for (const TypeName& known : kTypes) {
    if (known.type == view.type) code = known.code;
  }
  std::string shape;
  for (int a = 0; a < view.rank; ++a) shape += fmt::format("{}, ", view.shape[a]);
  if (view.rank > 1) shape.resize(shape.size() - 2);
  if (view.rank == 1) shape.resize(shape.size() - 1);
  std::string header = fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}), }}",
                                   view.type == DType::kBool ? '|' : '<', code, shape);
  const size_t before = kMagic.size() + 4;
  header.append(63 - (before + header.size()) % 64, ' ').push_back('\n');
  std::string text(kMagic);
  text += {1, 0, static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return text + header;
}

void write_all(int fd, const char* data, size_t size, std::string_view name) {
  while (size) {
    const ssize_t n = write(fd, data, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(name, fmt::format("can't be written: {}", reason()));
    data += n;
    size -= static_cast<size_t>(n);
  }
}

void write_view(int fd, const View& view, std::string_view name) {
  std::string block = header_text(view);
  const int64_t count = view.count();
  const size_t size = static_cast<size_t>(size_of(view.type));
  Shape index{};
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset = 0;
    for (int a = 0; a < view.rank; ++a) offset += index[a] * view.stride[a];
    block.append(view.as<const char>() + offset * static_cast<int64_t>(size), size);
    if (block.size() >= size_t{1} << 20) {
      write_all(fd, block.data(), block.size(), name);
      block.clear();
    }
    for (int a = view.rank - 1; a >= 0 && ++index[a] == view.shape[a]; --a) index[a] = 0;
  }
  write_all(fd, block.data(), block.size(), name);
}

}  // namespace

Array make_array(DType type, int rank, const Shape& shape) {
  int64_t count = 1, bound = 1;
  for (int a = 0; a < rank; ++a) {
    if (shape[a] < 0 || shape[a] > kMaxCount / bound) {
      throw Error(ErrorKind::kMemory, "array", "shape", std::to_string(shape[a]), "is too large");
    }
    count *= shape[a];
    bound *= std::max<int64_t>(1, shape[a]);
  }
  Array array{.storage = Buffer(count * size_of(type)), .view = {}};
  array.view = dense_view(array.storage.data(), type, rank, shape);
  return array;
}

Array parse_npy(std::span<const std::byte> bytes, std::string_view name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(kMagic)) fail(name, "is no .npy file");
  if (text.size() < 12) fail(name, "ends within its header");
  auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(text[i])); };
  const size_t version = byte(6), lengths = version == 1 ? 2 : 4;
  if (version < 1 || version > 3)
    fail(name, fmt::format("its format version {} is not supported (1 to 3 are)", version));
  size_t length = 0;
  for (size_t i = 0; i < lengths; ++i) length |= byte(8 + i) << (8 * i);
  const size_t begin = 8 + lengths;
  if (length > kMaxHeader || length > text.size() - begin) fail(name, "ends within its header");
  const Header header = HeaderReader(text.substr(begin, length), name).read();

  const int64_t wanted = header.count * size_of(header.type);
  const int64_t present = static_cast<int64_t>(text.size() - begin - length);
  if (present != wanted) {
    fail(name, fmt::format("it holds {} bytes of elements, its shape needs {}", present, wanted));
  }
  Array array = make_array(header.type, header.rank, header.shape);
  const std::byte* data = bytes.data() + begin + length;
  if (header.fortran && header.rank > 1) {
    from_fortran(array.view, data);
  } else if (wanted > 0) {
    std::memcpy(array.storage.data(), data, static_cast<size_t>(wanted));
  }
  if (header.type == DType::kBool) {
    for (int64_t i = 0; i < wanted; ++i) array.storage.data()[i] = std::byte{array.storage.data()[i] != std::byte{0}};
  }
  return array;
}

Array read_npy(const std::filesystem::path& path) {
  const std::string name = path.string();
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail(name, fmt::format("can't be opened: {}", reason()));
  Buffer bytes(64 << 10);
  int64_t size = 0;
  for (;;) {
    if (size == bytes.bytes()) bytes.resize(2 * size);
    const ssize_t n = read(file.get(), bytes.data() + size, static_cast<size_t>(bytes.bytes() - size));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(name, fmt::format("can't be read: {}", reason()));
    if (n == 0) break;
    if (size < 6 && size + n >= 6 && std::memcmp(bytes.data(), kMagic.data(), 6) != 0) fail(name, "is no .npy file");
    size += n;
  }
  return parse_npy({bytes.data(), static_cast<size_t>(size)}, name);
}

void write_npy(const std::filesystem::path& path, const View& view) {
  const std::string name = path.string();
  struct stat status {};
  const bool special = stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
  if (special) {  // a pipe or device: a rename would replace it
    Descriptor file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (file.get() < 0) fail(name, fmt::format("can't be opened: {}", reason()));
    return write_view(file.get(), view, name);
  }
  const std::string part = fmt::format("{}.{}.part", name, getpid());
  Descriptor file(open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) fail(name, fmt::format("can't be written: {}", reason()));
  try {
    write_view(file.get(), view, name);
    if (file.close_now() != 0) fail(name, fmt::format("can't be written: {}", reason()));
    if (rename(part.c_str(), name.c_str()) != 0) fail(name, fmt::format("can't be written: {}", reason()));
  } catch (...) {
    unlink(part.c_str());
    throw;
  }
}

}  // namespace attend
