#pragma once
// A store written to a file and read back: header, positions and coded rows of each layer and kv head, checksum.
//
// Layout, little endian: "ATTENDKV", version u32 = 3, layers u32, kv_heads u32, codec u32 (DType), d i64, dv i64,
// tokens i64, model and policy each u32 bytes and text; then for each layer and head count i64, positions flag u8,
// pieces u32, positions i32[count] if flagged (else slots), and each piece: types of keys and values, u8 each (DType),
// rows i64, scales and offsets f16[d] each where keys are by channel, keys, values; then i64 bytes and what else
// belongs to it; then u64, the checksum of all before it.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <span>
#include <string>
#include <vector>

#include "attend/kv/store.h"

namespace attend {

// What a saved store belongs to: texts that must be equal to read it.
struct StoreOrigin {
  std::string model, policy;
};

// Writes beside `path` and renames, so that the file is the old or the new one, whole. `tokens`: seen by the session;
// `more`: what it keeps beside keys, any bytes. Throws Error(kFile). Cost linear in the bytes.
void save_store(const Store& store, const StoreOrigin& origin, int64_t tokens, const std::filesystem::path& path,
                std::span<const std::byte> more = {});

// Fills an empty store of the saved shape and returns the tokens seen. Throws Error(kFile) for a file that can't be
// read, is none of these, damaged, cut off or longer than it says, or belongs to another model, policy or shape, and
// what append_coded() throws; then the store is empty. Nothing is allocated beyond what the file is long. `more`: gets
// what was saved; null: a file with anything is refused.
int64_t load_store(const std::filesystem::path& path, const StoreOrigin& origin, Store& store,
                   std::vector<std::byte>* more = nullptr);

// The same from a stream of `size` bytes; messages call it `name`.
int64_t load_store(std::istream& in, int64_t size, const std::string& name, const StoreOrigin& origin, Store& store,
                   std::vector<std::byte>* more = nullptr);

}  // namespace attend
