#include "attend/lm/model.h"

#include <fmt/format.h>

#include <cmath>

#include "attend/tensor/error.h"

namespace attend {
namespace {

// Gives mapped pages back while a tensor is being repacked.
struct Releaser : RowsDone {
  Releaser(const Gguf& gguf, const GgufTensor& t)
      : file(gguf), tensor(t), row(static_cast<int64_t>(t.data.size()) / t.shape[0]) {}
  void rows_done(int64_t first, int64_t last) override {
    file.release(tensor.data.subspan(static_cast<size_t>(first * row), static_cast<size_t>((last - first) * row)));
  }
  const Gguf& file;
  const GgufTensor& tensor;
  int64_t row;  // bytes
};

}  // namespace

LanguageModel::LanguageModel() = default;
LanguageModel::~LanguageModel() = default;

const RopeAngles& LanguageModel::rotary(int index, int64_t context) const {
  const size_t i = static_cast<size_t>(index);
  return context > graph_.rotaries[i].options.original ? long_rotaries_[i] : short_rotaries_[i];
}

std::shared_ptr<const LanguageModel> LanguageModel::load(const std::filesystem::path& path, ComputeMode compute,
                                                         Context& context) {
  const Gguf file = Gguf::open(path);
  std::shared_ptr<LanguageModel> model(new LanguageModel);
  model->graph_ = make_graph(file);
  model->compute_ = compute;
  const Graph& graph = model->graph_;
  model->tokenizer_ = make_tokenizer(file);
  if (model->tokenizer_->size() != graph.vocabulary)
    throw Error(ErrorKind::kFile, "model", fmt::format("{}: vocabulary", file.name()),
                std::to_string(model->tokenizer_->size()),
                fmt::format("but token_embd.weight has {} rows", graph.vocabulary));
  for (const Rotary& rotary : graph.rotaries) {
    std::vector<float> values[2];
    View divisors[2];
    for (int i = 0; i < 2; ++i) {
      const std::string& name = i == 0 ? rotary.short_factors : rotary.long_factors;
      if (name.empty()) continue;
      const GgufTensor& tensor = file.tensor(name);
      values[i].resize(static_cast<size_t>(tensor.shape[0]));
      dequantize(tensor.type, tensor.data.data(), tensor.shape[0], values[i].data());
      for (float x : values[i])
        if (!(x > 0 && std::isfinite(x)))
          throw Error(ErrorKind::kFile, "model", fmt::format("{}: {}", file.name(), name), fmt::format("{}", x),
                      "must be positive and finite");
      divisors[i] = dense_view(values[i].data(), DType::kF32, {tensor.shape[0]});
    }
    model->divisors_.push_back(rotary.long_factors.empty() ? values[0] : std::vector<float>());
    const RopeFactors factors{divisors[0], divisors[1]};
    const int64_t original = rotary.options.original;
    model->short_rotaries_.emplace_back(rope_table(rotary.options, rotary.options.dims, original, factors));
    model->long_rotaries_.emplace_back(rope_table(rotary.options, rotary.options.dims, original + 1, factors));
  }
  for (const VectorRef& ref : graph.vectors) {
    const GgufTensor& tensor = file.tensor(ref.tensor);
    Buffer values(ref.n * static_cast<int64_t>(sizeof(float)));
    dequantize(tensor.type, tensor.data.data(), ref.n, values.as<float>());
    model->vectors_.push_back(std::move(values));
  }
  const int64_t total = static_cast<int64_t>(graph.matrices.size());
  for (const MatrixRef& ref : graph.matrices) {
    context.throw_if_stopped();
    const GgufTensor& tensor = file.tensor(ref.tensor);
    Releaser releaser(file, tensor);
    model->matrices_.push_back(pack_weight(tensor.type, tensor.data.data(), ref.n, ref.k, compute, context, &releaser));
    if (context.progress) context.progress->update("loading", static_cast<int64_t>(model->matrices_.size()), total);
  }
  return model;
}

}  // namespace attend
