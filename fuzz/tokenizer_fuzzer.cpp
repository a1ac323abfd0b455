// Any bytes as text, by a small vocabulary of each kind: ids lie in the vocabulary, and valid text comes back.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "attend/lm/tokenizer.h"
#include "attend/tensor/text.h"
#include "support/small_vocabulary.h"

namespace {

using attend::Gguf;
using attend::test::GgufWriter;

std::unique_ptr<attend::Tokenizer> make(void (*write)(GgufWriter&)) {
  GgufWriter w;
  write(w);
  const std::string bytes = w.bytes();  // a tokenizer keeps nothing of the file
  return attend::make_tokenizer(Gguf::parse(attend::test::as_bytes(bytes), "sample"));
}

void check(const attend::Tokenizer& tokenizer, std::string_view text, std::string_view wanted) {
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, false, special);
    if (std::any_of(ids.begin(), ids.end(), [&](int32_t id) { return id < 0 || id >= tokenizer.size(); })) std::abort();
    std::string streamed;
    attend::Utf8Stream stream;
    for (int32_t id : ids) streamed += stream.push(tokenizer.piece(id, true));
    streamed += stream.finish();
    const std::string decoded = tokenizer.decode(ids, true);
    if (streamed != decoded) std::abort();
    if (attend::is_valid_utf8(text) && decoded != wanted) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto smollm = make([](GgufWriter& w) { attend::test::write_small_bpe(w); });
  static const auto gpt2 = make([](GgufWriter& w) { attend::test::write_small_bpe(w, "gpt2"); });
  static const auto spm = make([](GgufWriter& w) { attend::test::write_small_spm(w); });
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(*smollm, text, text);
  check(*gpt2, text, text);
  std::string spaced = text;
  for (size_t at; (at = spaced.find("\xe2\x96\x81")) != std::string::npos;) spaced.replace(at, 3, " ");
  check(*spm, text, spaced);
  const std::string valid = attend::to_valid_utf8(text);
  if (!attend::is_valid_utf8(valid) || (attend::is_valid_utf8(text) && valid != text)) std::abort();
  return 0;
}
