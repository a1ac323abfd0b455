// Worker of scripts/peers.py: attend, as a program that links the installed library.
#include <attend/attend.h>

#include <algorithm>
#include <memory>

#include "peers_worker.h"

namespace {

struct Loaded {
  attend::Array q, out;
  std::vector<attend::Array> k, v;
  attend::Context context;
  size_t turn = 0;
};

attend::Array array_of(const std::vector<float>& values, attend::DType type, const attend::Shape& shape) {
  attend::Array array = attend::make_array(type, 4, shape);
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == attend::DType::kF16) {
      array.view.as<attend::F16>()[i] = attend::to_f16(values[i]);
    } else if (type == attend::DType::kBF16) {
      array.view.as<attend::BF16>()[i] = attend::to_bf16(values[i]);
    } else {
      array.view.as<float>()[i] = values[i];
    }
  }
  return array;
}

std::function<void()> load(const peers::Shape& s) {
  const attend::DType type = s.type == "f16"    ? attend::DType::kF16
                             : s.type == "bf16" ? attend::DType::kBF16
                                                : attend::DType::kF32;
  const attend::Shape queries = {s.batch, s.heads, s.queries, s.width}, keys = {s.batch, s.kv_heads, s.keys, s.width};
  const int64_t count = s.batch * s.heads * s.queries * s.width, kv_count = s.batch * s.kv_heads * s.keys * s.width;
  auto loaded = std::make_shared<Loaded>(Loaded{array_of(peers::read(s, "q", count), attend::DType::kF32, queries),
                                                attend::make_array(attend::DType::kF32, 4, queries),
                                                {},
                                                {},
                                                attend::Context(s.threads)});
  const std::vector<float> k = peers::read(s, "k", kv_count), v = peers::read(s, "v", kv_count);
  for (int i = 0; i < s.copies; ++i) {
    loaded->k.push_back(array_of(k, type, keys));
    loaded->v.push_back(array_of(v, type, keys));
  }
  attend::SoftmaxOptions options;
  options.causal = s.causal;
  if (s.window) options.window = s.window;
  if (s.type == "bf16" && s.queries > 1) options.compute = attend::Compute::kBF16;  // as the others do
  auto call = [loaded, options] {
    const size_t i = loaded->turn++ % loaded->k.size();
    attend::softmax_attention({.q = loaded->q.view, .k = loaded->k[i].view, .v = loaded->v[i].view}, options,
                              {.out = loaded->out.view}, loaded->context);
  };
  call();
  peers::write(s, {loaded->out.view.as<float>(), loaded->out.view.as<float>() + count});
  return call;
}

}  // namespace

int main() {
  return peers::serve(load);
}
