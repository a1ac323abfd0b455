// Any sequence of appends, keeps, forks, new values and clears, on every store and codec: it holds what a plain list
// holds.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>

#include "attend/kv/offloaded_store.h"
#include "attend/kv/paged_store.h"
#include "attend/kv/staged_store.h"
#include "attend/kv/store.h"
#include "attend/kv/virtual_store.h"
#include "kv/naive_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace attend;
  if (size < 4) return 0;
  constexpr DType kCodecs[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};
  const int which = data[0] % 7;
  const DType codec = which < 5 ? kCodecs[which] : DType::kF16;
  const bool coded = which >= 5 || is_quantised(codec);
  const int64_t d = coded ? 32 : 3, dv = coded ? 64 : 5;
  // Keys and values of 2 bits after 20 tokens; or of 4, and of 2 after 60.
  const CodecStage two{which == 5 ? 20 : 60, DType::kQ2_C, DType::kQ2_1}, four{20, DType::kQ4_C, DType::kQ4_1};
  const Codec aging = which < 5    ? Codec(codec)
                      : which == 5 ? Codec(codec, {two}, 16, 16)
                                   : Codec(codec, {four, two}, 16, 16);
  const StoreShape shape{.layers = 2, .kv_heads = 2, .d = d, .dv = dv, .codec = codec, .context = 1024};
  const PagedOptions paged{.page = 1 + data[1] % 20, .share = data[2] % 4 != 0};
  const auto pool = make_page_pool(shape, paged);
  const int kind = data[3] % 8;
  struct Opens : StoreFactory {
    std::function<std::unique_ptr<Store>(const StoreShape&)> make;
    std::unique_ptr<Store> open(const StoreShape& s) const override { return make(s); }
  } opens;
  opens.make = [&](const StoreShape& s) {
    if (kind < 4) return make_paged_store(s, paged, s.part ? nullptr : pool);
    if (kind < 6) return make_contiguous_store(s);
    if (kind < 7) return make_virtual_store(s);
    return make_offloaded_store(s, {.resident = data[2] % 2, .directory = {}});
  };
  auto open = [&](const StoreShape& s) { return open_store(opens, s, aging); };
  std::span<const uint8_t> bytes(data + 4, size - 4);
  auto next = [&] {
    uint32_t value = 0;
    for (int i = 0; i < 2 && !bytes.empty(); ++i, bytes = bytes.subspan(1)) value = value << 8 | bytes[0];
    return value;
  };
  {
    test::StoreWalk walk(open, shape, aging, next);
    for (int step = 0; step < 60 && !bytes.empty(); ++step)
      if (const std::string found = walk.step(); !found.empty()) {
        std::fprintf(stderr, "step %d: %s\n", step, found.c_str());
        std::abort();
      }
  }
  if (pool->pages() != 0 || pool->references() != 0 || pool->bytes() != 0) std::abort();
  return 0;
}
