#include "attend/kv/store_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <istream>
#include <limits>
#include <utility>
#include <vector>

#include "attend/tensor/buffer.h"
#include "attend/tensor/error.h"
#include "kv/checksum.h"

namespace attend {
namespace {

static_assert(std::endian::native == std::endian::little, "states are written as they lie in memory");

constexpr char kMagic[] = {'A', 'T', 'T', 'E', 'N', 'D', 'K', 'V'};
constexpr uint32_t kVersion = 3;
constexpr uint8_t kLastType = static_cast<uint8_t>(DType::kQ2_C);

// Writes to a file beside the one that is wanted, which it becomes at the end.
class Writer {
 public:
  explicit Writer(const std::filesystem::path& path) : path_(path), part_(path.string() + ".XXXXXX") {
    file_ = mkostemp(part_.data(), O_CLOEXEC);
    if (file_ < 0) refuse();
  }
  ~Writer() {
    if (file_ >= 0) close(file_);
    if (!done_) unlink(part_.c_str());
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void put(const void* data, int64_t bytes) {
    checksum_ = kv::checksum(data, bytes, checksum_);
    write_all(data, bytes);
  }
  template <class T>
  void put(const T& value) {
    put(&value, sizeof value);
  }
  void text(const std::string& text) {
    put(static_cast<uint32_t>(text.size()));
    put(text.data(), static_cast<int64_t>(text.size()));
  }

  void finish() {
    const uint64_t sum = checksum_;
    write_all(&sum, sizeof sum);
    flush();
    if (fsync(file_) != 0) refuse();
    if (close(std::exchange(file_, -1)) != 0) refuse();
    if (std::rename(part_.c_str(), path_.c_str()) != 0) refuse();
    done_ = true;
  }

 private:
  [[noreturn]] void refuse() const {
    throw Error(ErrorKind::kFile, "state", fmt::format("\"{}\"", path_.string()), "",
                fmt::format("can't be written: {}", std::strerror(errno)));
  }

  void write_all(const void* data, int64_t bytes) {
    constexpr size_t kBlock = 1 << 16;
    const auto* from = static_cast<const char*>(data);
    const size_t size = static_cast<size_t>(bytes);
    if (pending_.size() + size > kBlock) flush();
    if (size > kBlock) return write_now(from, size);
    pending_.insert(pending_.end(), from, from + size);
  }
  void write_now(const char* from, size_t size) {
    while (size > 0) {
      const ssize_t n = write(file_, from, size);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) refuse();
      from += n;
      size -= static_cast<size_t>(n);
    }
  }
  void flush() {
    write_now(pending_.data(), pending_.size());
    pending_.clear();
  }

  std::filesystem::path path_;
  std::string part_;
  std::vector<char> pending_;
  int file_ = -1;
  uint64_t checksum_ = 0;
  bool done_ = false;
};

class Reader {
 public:
  Reader(std::istream& in, int64_t size, const std::string& name) : in_(in), left_(size), name_(name) {}

  [[noreturn]] void refuse(std::string_view rule) const {
    throw Error(ErrorKind::kFile, "state", fmt::format("\"{}\"", name_), "", rule);
  }

  // Refused before anything is allocated for it.
  void expect(int64_t bytes) const {
    if (bytes < 0 || bytes > left_) refuse("is damaged, or cut off");
  }
  void get(void* data, int64_t bytes) {
    expect(bytes);
    if (bytes && !in_.read(static_cast<char*>(data), bytes)) refuse("can't be read");
    left_ -= bytes;
    checksum_ = kv::checksum(data, bytes, checksum_);
  }
  template <class T>
  T get() {
    T value;
    get(&value, sizeof value);
    return value;
  }
  std::string text() {
    const uint32_t bytes = get<uint32_t>();
    expect(bytes);
    std::string text(bytes, '\0');
    get(text.data(), bytes);
    return text;
  }
  void finish() {
    const uint64_t sum = checksum_;
    if (get<uint64_t>() != sum || left_ != 0) refuse("is damaged: its checksum is wrong");
  }

 private:
  std::istream& in_;
  int64_t left_;
  const std::string& name_;
  uint64_t checksum_ = 0;
};

int64_t read_header(Reader& in, const StoreOrigin& origin, const StoreShape& shape) {
  char magic[sizeof kMagic];
  in.expect(sizeof magic);
  in.get(magic, sizeof magic);
  if (std::memcmp(magic, kMagic, sizeof magic) != 0) in.refuse("is no saved state");
  if (const uint32_t version = in.get<uint32_t>(); version != kVersion)
    in.refuse(fmt::format("has version {} of the format, this program reads {}", version, kVersion));
  const uint32_t layers = in.get<uint32_t>(), heads = in.get<uint32_t>(), codec = in.get<uint32_t>();
  const int64_t d = in.get<int64_t>(), dv = in.get<int64_t>(), tokens = in.get<int64_t>();
  if (in.text() != origin.model) in.refuse("was saved by another model");
  if (in.text() != origin.policy) in.refuse(fmt::format("was saved under another policy than \"{}\"", origin.policy));
  if (layers != static_cast<uint32_t>(shape.layers) || heads != static_cast<uint32_t>(shape.kv_heads) ||
      codec != static_cast<uint32_t>(shape.codec) || d != shape.d || dv != shape.dv)
    in.refuse("has keys of another shape");
  if (tokens < 0 || tokens > std::numeric_limits<int32_t>::max()) in.refuse("is damaged: it has a negative length");
  return tokens;
}

void read_head(Reader& in, int layer, int head, int64_t tokens, Store& store) {
  const int64_t d = store.shape().d, dv = store.shape().dv;
  const int64_t count = in.get<int64_t>();
  const uint8_t flag = in.get<uint8_t>();
  const uint32_t pieces = in.get<uint32_t>();
  if (count < 0 || count > tokens || flag > 1 || pieces > count || (pieces == 0) != (count == 0))
    in.refuse("is damaged: it counts keys that can't be");
  in.expect(flag * count * 4);
  std::vector<int32_t> position(static_cast<size_t>(flag ? count : 0));
  in.get(position.data(), static_cast<int64_t>(position.size() * sizeof(int32_t)));
  int64_t previous = -1;
  for (int32_t p : position)
    if (std::exchange(previous, int64_t{p}) >= p || p >= tokens) in.refuse("is damaged: its positions don't ascend");
  std::vector<Buffer> rows;
  std::vector<KeyRun> runs;
  auto buffer = [&](int64_t bytes) {
    in.expect(bytes);
    in.get(rows.emplace_back(bytes).data(), bytes);
    return rows.back().data();
  };
  int64_t next = 0;
  for (uint32_t i = 0; i < pieces; ++i) {
    const uint8_t k_type = in.get<uint8_t>(), v_type = in.get<uint8_t>();
    const int64_t n = in.get<int64_t>();
    if (k_type > kLastType || v_type > kLastType || n < 1 || n > count - next)
      in.refuse("is damaged: it has rows that can't be");
    KeyRun run;
    run.k_type = static_cast<DType>(k_type), run.v_type = static_cast<DType>(v_type);
    run.first_slot = std::exchange(next, next + n);
    run.count = n;
    if (is_by_channel(run.k_type)) {
      run.k_scale = reinterpret_cast<const F16*>(buffer(2 * d));
      run.k_offset = reinterpret_cast<const F16*>(buffer(2 * d));
    }
    const int64_t k_row = row_bytes(run.k_type, d), v_row = row_bytes(run.v_type, dv);
    run.k_stride = k_row / size_of(run.k_type), run.v_stride = v_row / size_of(run.v_type);
    run.k = buffer(n * k_row);
    run.v = buffer(n * v_row);
    runs.push_back(run);
  }
  if (next != count) in.refuse("is damaged: it counts keys that can't be");
  if (count == 0) return;
  try {
    store.append_coded(layer, head, {runs, position});
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kArgument) in.refuse("is damaged: its keys are not coded as the policy has it");
    throw;
  }
}

// Runs as pieces, however the store cuts them: what is coded in one way, and with the same scales, is one.
std::vector<std::span<const KeyRun>> pieces_of(const KeyView& keys) {
  std::vector<std::span<const KeyRun>> pieces;
  for (size_t first = 0; first < keys.runs.size();) {
    const KeyRun& run = keys.runs[first];
    size_t end = first + 1;
    while (end < keys.runs.size() && keys.runs[end].k_type == run.k_type && keys.runs[end].v_type == run.v_type &&
           keys.runs[end].k_scale == run.k_scale)
      ++end;
    pieces.push_back(keys.runs.subspan(first, end - first));
    first = end;
  }
  return pieces;
}

}  // namespace

void save_store(const Store& store, const StoreOrigin& origin, int64_t tokens, const std::filesystem::path& path,
                std::span<const std::byte> more) {
  const StoreShape& shape = store.shape();
  Writer out(path);
  out.put(kMagic, sizeof kMagic);
  out.put(kVersion);
  out.put(static_cast<uint32_t>(shape.layers));
  out.put(static_cast<uint32_t>(shape.kv_heads));
  out.put(static_cast<uint32_t>(shape.codec));
  out.put(shape.d);
  out.put(shape.dv);
  out.put(tokens);
  out.text(origin.model);
  out.text(origin.policy);
  std::vector<std::byte> rows;
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head) {
      const KeyView keys = store.keys(layer, head);
      const std::vector<std::span<const KeyRun>> pieces = pieces_of(keys);
      out.put(keys.count());
      out.put(static_cast<uint8_t>(!keys.position.empty()));
      out.put(static_cast<uint32_t>(pieces.size()));
      out.put(keys.position.data(), static_cast<int64_t>(keys.position.size_bytes()));
      for (const std::span<const KeyRun> piece : pieces) {
        const KeyRun& first = piece.front();
        out.put(static_cast<uint8_t>(first.k_type));
        out.put(static_cast<uint8_t>(first.v_type));
        out.put(piece.back().first_slot + piece.back().count - first.first_slot);
        if (is_by_channel(first.k_type)) {
          out.put(first.k_scale, 2 * shape.d);
          out.put(first.k_offset, 2 * shape.d);
        }
        for (const bool values : {false, true}) {
          const int64_t bytes = values ? row_bytes(first.v_type, shape.dv) : row_bytes(first.k_type, shape.d);
          rows.clear();
          for (const KeyRun& run : piece)
            for (int64_t i = 0; i < run.count; ++i) {
              const auto* row = static_cast<const std::byte*>((values ? run.values() : run.keys()).row(i));
              rows.insert(rows.end(), row, row + bytes);
            }
          out.put(rows.data(), static_cast<int64_t>(rows.size()));
        }
      }
    }
  out.put(static_cast<int64_t>(more.size()));
  out.put(more.data(), static_cast<int64_t>(more.size()));
  out.finish();
}

int64_t load_store(std::istream& in, int64_t size, const std::string& name, const StoreOrigin& origin, Store& store,
                   std::vector<std::byte>* more) {
  const StoreShape& shape = store.shape();
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head)
      if (store.keys(layer, head).count())
        throw Error(ErrorKind::kArgument, "state", "store", fmt::format("{} keys", store.keys(layer, head).count()),
                    "must be empty");
  Reader reader(in, size, name);
  try {
    const int64_t tokens = read_header(reader, origin, shape);
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int head = 0; head < shape.kv_heads; ++head) read_head(reader, layer, head, tokens, store);
    const int64_t bytes = reader.get<int64_t>();
    reader.expect(bytes);
    if (bytes > 0 && !more) reader.refuse("keeps more than keys");
    std::vector<std::byte> rest(static_cast<size_t>(bytes));
    reader.get(rest.data(), bytes);
    reader.finish();
    if (more) *more = std::move(rest);
    return tokens;
  } catch (...) {
    store.clear();
    throw;
  }
}

int64_t load_store(const std::filesystem::path& path, const StoreOrigin& origin, Store& store,
                   std::vector<std::byte>* more) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  const int64_t size = in ? static_cast<int64_t>(in.tellg()) : -1;
  if (size < 0 || !in.seekg(0))
    throw Error(ErrorKind::kFile, "state", fmt::format("\"{}\"", path.string()), "",
                fmt::format("can't be read: {}", std::strerror(errno)));
  return load_store(in, size, path.string(), origin, store, more);
}

}  // namespace attend
