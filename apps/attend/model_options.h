#pragma once
// What every command that runs a model asks for, and how it gets the model.
#include <memory>
#include <string>

#include "attend/lm/ensemble.h"
#include "common.h"

namespace attend::app {

struct ModelOptions {
  std::string model = kDefaultModel, compute = "default";
  int64_t threads = 0, chunk = 512, context = 0;
};

void declare_model_options(Options& options, ModelOptions& model);

// Obtains and loads the model. Throws UsageError for an unknown compute mode.
std::shared_ptr<const LanguageModel> load_model(const ModelOptions& options, Context& context);

// Throws Error(kSpec) for what no model could run.
void check_policies(std::string_view policy);

// The text of a file, or of an argument that arrived whole; throws Error(kFile) if it is empty.
std::string require_text(std::string text, const std::string& source);

// Most memory that this process has held, in bytes.
int64_t peak_memory();

}  // namespace attend::app
