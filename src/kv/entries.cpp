// The entries of this room.
#include "kv/entries.h"
#include "attend/kv/codec.h"
#include "attend/kv/register.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

template <DType type>
std::unique_ptr<Component> make_codec(const Spec&) {
  return std::make_unique<Codec>(type);
}

constexpr Option kKiviOptions[] = {
    {"bits", "", "Bits of the integers of old keys and values: 2 or 4.", "2", OptionType::kInteger, 2, 4},
    {"residual", "tokens", "The newest keys and values, which stay f16.", "128", OptionType::kInteger, 0, 1 << 20},
    {"group", "tokens", "Neighbouring keys that share scales and offsets.", "32", OptionType::kInteger, 8, 1024},
    {"stride", "tokens", "How often what has become old is coded.", "256", OptionType::kInteger, 1, 1 << 20},
};

constexpr Paper kKiviPapers[] = {{"KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", "2402.02750", ""}};

std::unique_ptr<Component> make_kivi(const Spec& spec) {
  const int64_t bits = spec.integer("bits");
  if (bits == 3) throw Error(ErrorKind::kArgument, "kivi", "bits", "3", "must be 2 or 4");
  const DType keys = bits == 2 ? DType::kQ2_C : DType::kQ4_C, values = bits == 2 ? DType::kQ2_1 : DType::kQ4_1;
  return std::make_unique<Codec>(DType::kF16, std::vector<CodecStage>{{spec.integer("residual"), keys, values}},
                                 spec.integer("group"), spec.integer("stride"));
}

constexpr Option kStaircaseOptions[] = {
    {"full", "tokens", "The newest keys and values, which stay f16.", "128", OptionType::kInteger, 0, 1 << 20},
    {"eight", "tokens", "Those before them, in 8 bits.", "512", OptionType::kInteger, 0, 1 << 20},
    {"four", "tokens", "Those before these, in 4 bits; all that are older, in 2.", "2048", OptionType::kInteger, 0,
     1 << 30},
    {"group", "tokens", "Neighbouring keys that share scales and offsets.", "32", OptionType::kInteger, 8, 1024},
    {"stride", "tokens", "How often what has become old is coded.", "256", OptionType::kInteger, 1, 1 << 20},
};

constexpr Paper kStaircasePapers[] = {
    {"The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI", "2410.18441",
     "237"}};

// A stair without keys is left out.
std::unique_ptr<Component> make_staircase(const Spec& spec) {
  int64_t age = spec.integer("full");
  std::vector<CodecStage> stairs;
  auto add = [&](int64_t tokens, DType keys, DType values) {
    if (tokens > 0) stairs.push_back({age, keys, values});
    age += tokens;
  };
  add(spec.integer("eight"), DType::kQ8_0, DType::kQ8_0);
  add(spec.integer("four"), DType::kQ4_C, DType::kQ4_1);
  add(1, DType::kQ2_C, DType::kQ2_1);
  return std::make_unique<Codec>(DType::kF16, std::move(stairs), spec.integer("group"), spec.integer("stride"));
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
    {.kind = Kind::kCodec,
     .name = "kivi",
     .room = "kv",
     .equation =
         "Q(X) = round((X - z) / s), X' = s Q(X) + z, z = min X, s = (max X - z) / (2^bits - 1); X a channel of "
         "a group of keys, or 32 elements of a value",
     .summary = "Old keys by channel and old values by token as 2- or 4-bit integers, the newest of both as f16.",
     .options = kKiviOptions,
     .in = {},
     .out = {},
     .papers = kKiviPapers,
     .traits = {.exact_for = "texts no longer than the residual", .forms = {}, .patterns = {}},
     .notes =
         "s and z are f16: with groups of 32, an element takes bits + 1. Keys and values are coded together, where the "
         "number of tokens is a multiple of the stride, so that between residual and residual + stride + group - 1 of "
         "them are f16; the paper's code does so whenever residual tokens have gathered, values one by one, and lets "
         "the queries of a prompt see it all as it was. Rows must be multiples of 32 elements. A group or block that "
         "is not finite reads as NaN.",
     .make = make_kivi},
    {.kind = Kind::kCodec,
     .name = "saq",
     .room = "kv",
     .equation = "bits of an element of a key or value of age a:  16 for a < full,  8 for a < full + eight,\n"
                 "4 for a < full + eight + four,  2 beyond",
     .summary = "Staircase quantisation: the older a key and its value, the fewer bits, f16, 8, 4 and at last 2.",
     .options = kStaircaseOptions,
     .in = {},
     .out = {},
     .papers = kStaircasePapers,
     .traits = {.exact_for = "texts no longer than `full`", .forms = {}, .patterns = {}},
     .notes =
         "237: the abstract says staircase adaptive quantisation with gradual degradation, on the framework of another "
         "paper; its text was not at hand. So the stairs and their lengths are ours; 8 bits are those of q8_0, 4 and 2 "
         "those of kivi: keys by channel, values by token. What falls a stair is coded from what the stair above held. "
         "Where stairs end is checked when the number of tokens is a multiple of the stride. Rows must be multiples of "
         "32 elements.",
     .make = make_staircase},
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
  register_merging_retentions(registry);
  register_norm_retentions(registry);
  register_weight_retentions(registry);
  register_window_retentions(registry);
}

}  // namespace attend
