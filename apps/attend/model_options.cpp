#include "model_options.h"

#include <fmt/format.h>

#include <charconv>
#include <fstream>

#include "attend/tensor/error.h"

namespace attend::app {

void declare_model_options(Options& options, ModelOptions& model) {
  options.group("Model and machine");
  declare_model(options, model.model);
  options.text("--compute MODE", model.compute,
               "default: weights stay quantised, products in int8; f32: everything in f32, slower (default: default)");
  options.integer("--ctx N", model.context, 2, int64_t{1} << 30,
                  "most tokens to hold (default: the model's own limit)");
  declare_chunk(options, model.chunk);
  declare_threads(options, model.threads);
}

std::shared_ptr<const LanguageModel> load_model(const ModelOptions& options, Context& context) {
  if (options.compute != "default" && options.compute != "f32")
    throw UsageError(fmt::format("--compute = {}, must be default or f32", options.compute));
  const std::filesystem::path path = obtain_model(options.model, context);
  return LanguageModel::load(path, options.compute == "f32" ? ComputeMode::kF32 : ComputeMode::kDefault, context);
}

void check_policies(std::string_view policy) {
  for (const std::string& each : split_readings(policy)) (void)registry().policy(each);
}

std::string require_text(std::string text, const std::string& source) {
  if (text.empty()) throw Error(ErrorKind::kFile, fmt::format("{} is empty: there is nothing to read", source));
  return text;
}

int64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) {
      const size_t digit = line.find_first_of("0123456789");
      int64_t kilobytes = 0;
      if (digit != std::string::npos) std::from_chars(line.data() + digit, line.data() + line.size(), kilobytes);
      return kilobytes * 1024;
    }
  return 0;
}

}  // namespace attend::app
