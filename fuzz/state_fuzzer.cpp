// Any bytes as a saved state, with a checksum that is right or not: read, or refused with attend::Error and the store
// left empty.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

#include "attend/kv/staged_store.h"
#include "attend/kv/store.h"
#include "attend/kv/store_file.h"
#include "attend/tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace attend;
  // Of one type, or of a codec with stages.
  struct Contiguous : StoreFactory {
    std::unique_ptr<Store> open(const StoreShape& shape) const override { return make_contiguous_store(shape); }
  };
  const bool staged = size % 2;
  const int64_t d = staged ? 32 : 2, dv = staged ? 32 : 1;
  const StoreShape shape{.layers = 1, .kv_heads = 2, .d = d, .dv = dv, .codec = DType::kF16};
  const auto store =
      open_store(Contiguous(), shape,
                 staged ? Codec(DType::kF16, {{4, DType::kQ4_C, DType::kQ4_1}, {9, DType::kQ2_C, DType::kQ2_1}}, 8, 16)
                        : Codec(DType::kF16));
  // What follows a header that fits, too.
  const uint32_t words[] = {3, 1, 2, static_cast<uint32_t>(DType::kF16)};
  const int64_t sizes[] = {d, dv, 50};
  std::string header = "ATTENDKV";
  header.append(reinterpret_cast<const char*>(words), sizeof words);
  header.append(reinterpret_cast<const char*>(sizes), sizeof sizes);
  header.append(8, '\0');  // empty names
  const std::string given(reinterpret_cast<const char*>(data), size);
  for (const std::string& bytes : {given, header + given}) {
    std::istringstream in(bytes);
    bool refused = false;
    try {
      std::vector<std::byte> more;
      load_store(in, static_cast<int64_t>(bytes.size()), "fuzz", {}, *store, size % 2 ? &more : nullptr);
    } catch (const Error&) {
      refused = true;
    }
    if (refused && store->bytes() != 0) std::abort();
    store->clear();
  }
  return 0;
}
