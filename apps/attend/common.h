#pragma once
// Options and habits that several subcommands share.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "attend/tensor/context.h"
#include "command.h"

namespace attend::app {

void declare_threads(Options& options, int64_t& threads);
void declare_json(Options& options, bool& json);
void declare_model(Options& options, std::string& model);
void declare_policy(Options& options, std::string& policy);
void declare_chunk(Options& options, int64_t& chunk);

inline constexpr const char* kDefaultModel = "smollm2-135m";

// A context that Ctrl-C stops.
Context make_context(int64_t threads, Progress* progress);

// The file of a model given by name or path; a named one is obtained if it is missing, after its terms were printed.
std::filesystem::path obtain_model(const std::string& name_or_path, Context& context);

// The whole of a text file ("-": standard input). Throws Error(kFile), one clear line, for a file that is missing, a
// directory, unreadable, over 1 GiB or no UTF-8 text.
std::string read_text(const std::string& path);
// The same for any bytes.
std::string read_bytes(const std::string& path, int64_t limit);

// Throws what write_file() would throw for a place that can't be written to: before work whose result would be lost.
// An empty path passes.
void check_writable(const std::string& path);

// Writes beside the target, then renames; devices and pipes are written directly. Throws Error(kFile).
void write_file(const std::string& path, std::string_view text);

}  // namespace attend::app
