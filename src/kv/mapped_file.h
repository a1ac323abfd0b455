#pragma once
// A file without a name, mapped whole, with blocks allocated where asked for.
#include <cstddef>
#include <cstdint>
#include <string>

namespace attend::kv {

class MappedFile {
 public:
  // `directory` empty: $TMPDIR, else /tmp. Throws Error(kFile) if no file can be made there, Error(kMemory) if it can't
  // be mapped.
  MappedFile(std::string_view op, std::string directory, int64_t bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::byte* data() const { return data_; }

  // Ranges are [begin, end), multiples of a page of the system.
  void allocate(int64_t begin, int64_t end);      // so that writing can't fail; throws Error(kFile)
  void give_back(int64_t begin, int64_t end);     // blocks and memory; reads as zero then
  void read_ahead(int64_t begin, int64_t end);    // begins to
  void write_behind(int64_t begin, int64_t end);  // begins to
  void evict(int64_t begin, int64_t end);         // from memory, once it is written

  int64_t resident(int64_t begin, int64_t end) const;  // bytes in memory, of any process
  int64_t disk_bytes() const;

 private:
  std::string op_, directory_;
  int file_ = -1;
  std::byte* data_ = nullptr;
  int64_t bytes_;
};

}  // namespace attend::kv
