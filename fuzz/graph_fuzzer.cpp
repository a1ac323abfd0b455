// The hyperparameters and tensors of a model: bytes of a well-formed file are changed; its graph is made, with sizes
// that its tensors have, or the file is refused with attend::Error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "attend/lm/graph.h"
#include "attend/tensor/error.h"
#include "support/small_model.h"

namespace {

std::string sample(const char* architecture) {
  attend::test::SmallModel model;
  model.architecture = architecture;
  model.layers = 1, model.width = 8, model.feed_forward = 8, model.heads = 2, model.kv_heads = 1, model.head = 4;
  return model.bytes();
}

void make(std::span<const std::byte> bytes) {
  const attend::Gguf file = attend::Gguf::parse(bytes, "fuzzed");
  const attend::Graph graph = attend::make_graph(file);
  for (const attend::MatrixRef& matrix : graph.matrices)
    if (file.tensor(matrix.tensor).count() != matrix.n * matrix.k) std::abort();
  for (const attend::AttentionLayer& layer : graph.layers)
    if (layer.heads % layer.kv_heads || layer.d < 1 || layer.d > 512 || !(layer.scale > 0)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string samples[] = {sample("llama"), sample("gemma3")};
  if (size == 0) return 0;
  try {
    // Two bytes say where, one how many bytes, then come the bytes.
    std::string bytes = samples[data[0] % 2];
    for (size_t at = 1; at + 3 < size;) {
      const size_t place = (static_cast<size_t>(data[at]) << 8 | data[at + 1]) % bytes.size();
      const size_t count = std::min({static_cast<size_t>(data[at + 2] % 9), size - at - 3, bytes.size() - place});
      std::copy_n(reinterpret_cast<const char*>(data) + at + 3, count, bytes.begin() + static_cast<ptrdiff_t>(place));
      at += 3 + count;
    }
    make(attend::test::as_bytes(bytes));
  } catch (const attend::Error&) {
  }
  return 0;
}
