#include "kv/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "attend/tensor/error.h"
#include "kv/mapping.h"

namespace attend::kv {
namespace {

int open_unnamed(const std::string& directory) {
  int file = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
  std::string name = directory + "/attend-XXXXXX";  // a file system without unnamed files
  file = mkostemp(name.data(), O_CLOEXEC);
  if (file >= 0) unlink(name.c_str());
  return file;
}

}  // namespace

MappedFile::MappedFile(std::string_view op, std::string directory, int64_t bytes)
    : op_(op), directory_(std::move(directory)), bytes_(bytes) {
  if (directory_.empty()) {
    const char* given = std::getenv("TMPDIR");
    directory_ = given && *given ? given : "/tmp";
  }
  auto refuse = [&](int error) {
    if (file_ >= 0) close(file_);
    throw Error(ErrorKind::kFile, op_, "directory", fmt::format("\"{}\"", directory_),
                fmt::format("takes no file of {} bytes: {}", bytes, std::strerror(error)));
  };
  file_ = open_unnamed(directory_);
  if (file_ < 0 || ftruncate(file_, bytes) != 0) refuse(errno);
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  if (p == MAP_FAILED) {
    close(file_);
    throw Error(ErrorKind::kMemory, op_, "bytes", fmt::format("{}", bytes), "of addresses can't be reserved");
  }
  // What is read ahead is asked for; around a page that is touched early nothing else is.
  madvise(p, static_cast<size_t>(bytes), MADV_RANDOM);
  data_ = static_cast<std::byte*>(p);
}

MappedFile::~MappedFile() {
  munmap(data_, static_cast<size_t>(bytes_));
  close(file_);
}

void MappedFile::allocate(int64_t begin, int64_t end) {
  if (begin >= end) return;
  int error = 0;
  while ((error = posix_fallocate(file_, begin, end - begin)) == EINTR) {
  }
  if (error)
    throw Error(ErrorKind::kFile, op_, "directory", fmt::format("\"{}\"", directory_),
                fmt::format("has no room for {} bytes more: {}", end - begin, std::strerror(error)));
}

void MappedFile::give_back(int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin) != 0)
    madvise(data_ + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

void MappedFile::read_ahead(int64_t begin, int64_t end) {
  if (begin < end) madvise(data_ + begin, static_cast<size_t>(end - begin), MADV_WILLNEED);
}

void MappedFile::write_behind(int64_t begin, int64_t end) {
  if (begin < end) sync_file_range(file_, begin, end - begin, SYNC_FILE_RANGE_WRITE);
}

void MappedFile::evict(int64_t begin, int64_t end) {
  if (begin >= end) return;
  madvise(data_ + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
  sync_file_range(file_, begin, end - begin,
                  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  posix_fadvise(file_, begin, end - begin, POSIX_FADV_DONTNEED);
}

int64_t MappedFile::resident(int64_t begin, int64_t end) const {
  const int64_t page = system_page();
  std::vector<unsigned char> in(1024);
  int64_t total = 0;
  for (int64_t at = begin; at < end;) {
    const int64_t pages = std::min<int64_t>((end - at + page - 1) / page, static_cast<int64_t>(in.size()));
    if (mincore(data_ + at, static_cast<size_t>(pages * page), in.data()) == 0)
      total += std::count_if(in.begin(), in.begin() + pages, [](unsigned char b) { return b & 1; }) * page;
    at += pages * page;
  }
  return total;
}

int64_t MappedFile::disk_bytes() const {
  struct stat info {};
  return fstat(file_, &info) == 0 ? static_cast<int64_t>(info.st_blocks) * 512 : 0;
}

}  // namespace attend::kv
