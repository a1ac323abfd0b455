// The entries of this room.
#include "kv/entries.h"
#include "attend/kv/codec.h"
#include "attend/kv/register.h"

namespace attend {
namespace {

template <DType type>
std::unique_ptr<Component> make_codec(const Spec&) {
  return std::make_unique<Codec>(type);
}

constexpr Entry kEntries[] = {
    {.kind = Kind::kCodec,
     .name = "f16",
     .room = "kv",
     .equation = "stored = round_f16(x)",
     .summary = "Keys and values as IEEE half floats (11 bits of precision, largest value 65504).",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "values that half floats hold", .forms = {}, .patterns = {}},
     .notes = {},
     .make = make_codec<DType::kF16>},
    {.kind = Kind::kCodec,
     .name = "f32",
     .room = "kv",
     .equation = "stored = x",
     .summary = "Keys and values as they are computed.",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "every value", .forms = {}, .patterns = {}},
     .notes = {},
     .make = make_codec<DType::kF32>},
    {.kind = Kind::kCodec,
     .name = "bf16",
     .room = "kv",
     .equation = "stored = round_bf16(x)",
     .summary = "Keys and values as bfloat16 (8 bits of precision, the range of f32).",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "values that bfloat16 holds", .forms = {}, .patterns = {}},
     .notes = {},
     .make = make_codec<DType::kBF16>},
    {.kind = Kind::kCodec,
     .name = "q8_0",
     .room = "kv",
     .equation = "stored = q d for each 32 elements: d = max |x| / 127 (f16), q = round(x / d)",
     .summary = "Keys and values as 8-bit integers with a scale for each 32: 1.06 bytes an element. ggml's q8_0.",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "multiples of an f16 number from -127 to 127 times it, an end among them",
                .forms = {},
                .patterns = {}},
     .notes =
         "Rows must be multiples of 32 elements. Integers of a row come first, then its scales; a block that is not "
         "finite, or beyond 8.3e6, reads as NaN.",
     .make = make_codec<DType::kQ8_0>},
    {.kind = Kind::kCodec,
     .name = "q4_0",
     .room = "kv",
     .equation = "stored = (q - 8) d for each 32 elements: d = m / -8 (f16) with m the element of largest magnitude, "
                 "q = min(15, floor(x / d + 8.5))",
     .summary = "Keys and values as 4-bit integers with a scale for each 32: 0.56 bytes an element. ggml's q4_0.",
     .options = {},
     .in = {},
     .out = {},
     .papers = {},
     .traits = {.exact_for = "multiples of an f16 number from -8 to 7 times it, -8 among them",
                .forms = {},
                .patterns = {}},
     .notes =
         "Rows must be multiples of 32 elements. Integers of a row come first, then its scales; a block that is not "
         "finite, or beyond 5.2e5, reads as NaN.",
     .make = make_codec<DType::kQ4_0>},
};

}  // namespace

void register_kv(Registry& registry) {
  for (const Entry& entry : kEntries) registry.add(entry);
  register_stores(registry);
  register_allocators(registry);
  register_duo(registry);
  register_expected_retention(registry);
  register_fastgen(registry);
  register_count_retentions(registry);
  register_norm_retentions(registry);
  register_weight_retentions(registry);
  register_window_retentions(registry);
}

}  // namespace attend
