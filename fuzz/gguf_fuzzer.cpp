// A GGUF file, any bytes or a well-formed file with changed bytes: it parses and every part of it can be read, or it is
// refused with attend::Error. Its tokenizer, if it has one, encodes and decodes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "attend/lm/gguf.h"
#include "attend/lm/tokenizer.h"
#include "attend/tensor/error.h"
#include "support/small_vocabulary.h"

namespace {

using attend::test::GgufWriter;

std::string with_bpe() {
  GgufWriter w;
  w.text("general.architecture", "llama");
  attend::test::write_small_bpe(w);
  return w.bytes();
}

std::string with_spm() {
  GgufWriter w;
  attend::test::write_small_spm(w);
  return w.bytes();
}

std::string with_tensors() {
  GgufWriter w;
  w.u32("general.alignment", 32);
  w.f32("a.real", 1.5f);
  w.texts("a.texts", {"one", "two"});
  w.tensor("matrix", attend::WeightType::kQ8_0, {2, 32}, std::string(68, '\1'));
  w.tensor("vector", attend::WeightType::kF32, {3}, std::string(12, '\2'));
  return w.bytes();
}

void read_all(std::span<const std::byte> bytes) {
  const attend::Gguf file = attend::Gguf::parse(bytes, "fuzzed");
  unsigned sum = 0;
  for (const attend::GgufTensor& tensor : file.tensors()) {
    for (std::byte b : tensor.data) sum += static_cast<unsigned>(b);
    if (file.find(tensor.name) != &tensor) std::abort();
  }
  if (file.has("a.texts")) sum += static_cast<unsigned>(file.texts("a.texts").size());
  if (file.has("general.architecture")) sum += static_cast<unsigned>(file.text("general.architecture").size());
  if (file.real("a.real", 0.0) == sum) return;
  const auto tokenizer = attend::make_tokenizer(file);
  const std::vector<int32_t> ids = tokenizer->encode("<|im_start|>the hello  <b>\n\n\xc3\xa9\xff 12", true, true);
  tokenizer->decode(ids, false);
  for (int32_t id = 0; id < std::min(tokenizer->size(), 1000); ++id) tokenizer->piece(id, true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string samples[] = {with_bpe(), with_spm(), with_tensors()};
  try {
    if (size == 0 || data[0] > 2) {
      read_all(std::as_bytes(std::span(data, size)));
      return 0;
    }
    // Changes to a sample: two bytes say where, one how many bytes, then come the bytes.
    std::string bytes = samples[data[0]];
    for (size_t at = 1; at + 3 < size;) {
      const size_t place = (static_cast<size_t>(data[at]) << 8 | data[at + 1]) % bytes.size();
      const size_t count = std::min({static_cast<size_t>(data[at + 2] % 9), size - at - 3, bytes.size() - place});
      std::copy_n(reinterpret_cast<const char*>(data) + at + 3, count, bytes.begin() + static_cast<ptrdiff_t>(place));
      at += 3 + count;
    }
    read_all(attend::test::as_bytes(bytes));
  } catch (const attend::Error&) {
  }
  return 0;
}
