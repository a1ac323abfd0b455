// attend apply: any operator over arrays in files, by port name, so that any other program can be compared with it.
#include <cmath>
#include <limits>
#include <memory>

#include "attend/tensor/error.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/text.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct Arguments {
  std::string spec, q, k, v, kv_lens, out;
  std::vector<std::string> more_in, more_out;
  bool causal = false, reference = false, json = false;
  double scale = 0;
  int64_t threads = 0;
};

using Files = std::map<std::string, std::string, std::less<>>;

void add_files(Files& files, const std::vector<std::string>& pairs, std::string_view option) {
  for (const std::string& pair : pairs) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == pair.size())
      throw UsageError(fmt::format("{} {} must be NAME=FILE.npy", option, printable(pair)));
    if (!files.emplace(pair.substr(0, equals), pair.substr(equals + 1)).second)
      throw UsageError(fmt::format("{}: port {} is given twice", option, printable(pair.substr(0, equals))));
  }
}

const Port& port_of(const Entry& entry, std::span<const Port> ports, std::string_view name) {
  for (const Port& port : ports)
    if (port.name == name) return port;
  std::vector<std::string_view> names;
  for (const Port& port : ports) names.push_back(port.name);
  throw UsageError(fmt::format("{} has no port {}; ports: {}", entry.name, printable(name), fmt::join(names, ", ")));
}

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16 || type == DType::kF64;
}

bool takes(const Port& port, DType type) {
  for (size_t at = 0; at < port.types.size();) {
    const size_t end = std::min(port.types.find(' ', at), port.types.size());
    if (port.types.substr(at, end - at) == name_of(type)) return true;
    at = end + 1;
  }
  return false;
}

// `array` in a type that the port takes: floats as f32, integers as i32 where they fit.
Array converted(Array array, const Port& port, const std::string& file) {
  if (takes(port, array.view.type)) return array;
  const DType to = is_float(array.view.type) ? DType::kF32 : DType::kI32;
  const bool is_integer = array.view.type == DType::kI64 || array.view.type == DType::kI32;
  if (!takes(port, to) || !(is_float(array.view.type) || is_integer))
    throw Error(ErrorKind::kArgument, "apply", fmt::format("{} ({})", port.name, printable(file)),
                name_of(array.view.type), fmt::format("must be {}", port.types));
  Array result = make_array(to, array.view.rank, array.view.shape);
  for (int64_t i = 0; i < array.view.count(); ++i) {
    const double x = value_at(array.view, i);
    if (to == DType::kF32) {
      result.view.as<float>()[i] = static_cast<float>(x);
      continue;
    }
    if (std::abs(x) > std::numeric_limits<int32_t>::max())
      throw Error(ErrorKind::kArgument, "apply", fmt::format("{}[{}]", port.name, i), fmt::format("{}", x),
                  "must fit 32 bits");
    result.view.as<int32_t>()[i] = static_cast<int32_t>(x);
  }
  return result;
}

Spec spec_of(const Arguments& a, const Entry& entry, Spec spec, bool scale_given) {
  auto set = [&](std::string_view option, std::string value) {
    for (const Option& known : entry.options)
      if (known.name == option) return spec.set(option, std::move(value));
    throw UsageError(fmt::format("{} has no option {}", entry.name, option));
  };
  if (a.causal) set("causal", "true");
  if (scale_given) set("scale", fmt::format("{}", a.scale));
  return spec;
}

int apply(const Arguments& a, bool scale_given) {
  const Spec written = parse_spec(a.spec);
  const Entry& entry = registry().at(written.name);
  if (entry.kind != Kind::kMechanism)
    throw UsageError(fmt::format("{} is a {}: only mechanisms can be applied", entry.name, name_of(entry.kind)));
  const Spec spec = spec_of(a, entry, written, scale_given);

  Files in_files, out_files;
  for (const auto& [port, file] : {std::pair{"q", &a.q}, {"k", &a.k}, {"v", &a.v}, {"kv_lens", &a.kv_lens}})
    if (!file->empty()) in_files.emplace(port, *file);
  add_files(in_files, a.more_in, "--in");
  if (!a.out.empty()) out_files.emplace("out", a.out);
  add_files(out_files, a.more_out, "--out");
  if (out_files.empty()) throw UsageError("no output is asked for: give -o FILE.npy or --out NAME=FILE.npy");
  for (const auto& [name, file] : out_files) {
    port_of(entry, entry.out, name);
    check_writable(file);
    for (const auto& [other, its_file] : out_files)
      if (other < name && file == its_file)
        throw UsageError(fmt::format("{} and {} can't both go to {}", other, name, file));
  }

  std::map<std::string, Array, std::less<>> read, ready;
  Tensors precise, in;
  for (const auto& [name, file] : in_files) {
    const Port& port = port_of(entry, entry.in, name);
    Array array = read_npy(file);
    if (a.reference) {
      Array copy = read_npy(file);
      precise[name] = copy.view;
      read.emplace(name, std::move(copy));
    }
    in[name] = ready.emplace(name, converted(std::move(array), port, file)).first->second.view;
  }

  const auto op = registry().make<Operator>(spec);
  auto shapes = op->infer(in);  // checks everything, for the reference too
  const auto reference = a.reference ? entry.reference(registry().complete(spec)) : nullptr;
  if (reference) shapes = reference->infer(precise);
  std::map<std::string, Array, std::less<>> results;
  Tensors out;
  for (const auto& [name, shape] : shapes)
    if (name == "out" || out_files.contains(name))
      out[name] = results.emplace(name, make_array(shape.type, shape.rank, shape.shape)).first->second.view;
  Context context = make_context(a.threads, nullptr);
  if (reference) {
    reference->forward(precise, out, Form::kAny, context);
  } else {
    op->forward(in, out, Form::kAny, context);
  }
  Json rows = Json::array();
  for (const auto& [name, file] : out_files) {
    const View& view = results.find(name)->second.view;
    write_npy(file, view);
    rows.push_back({{"port", name},
                    {"file", file},
                    {"shape", std::vector<int64_t>(view.shape.begin(), view.shape.begin() + view.rank)},
                    {"dtype", name_of(view.type)}});
    if (!a.json)
      fmt::print("{} {} {} -> {}\n", name, name_of(view.type), to_string(view), safe_text(file, Lines::kOne));
  }
  if (a.json) print_json({{"spec", to_string(spec)}, {"outputs", rows}});
  return 0;
}

}  // namespace

const Command kApply = {
    "apply", "Run a mechanism over arrays in NumPy's format.",
    "Arrays are f32, f16, f64 (rounded to f32 unless --reference), i32, i64 or bool; u2 is read as bf16.\n"
    "Shapes: q [B, Hq, Tq, D], k [B, Hkv, Tk, D], v [B, Hkv, Tk, Dv]; attend info SPEC names the other ports.\n\n"
    "Example:\n  attend apply softmax:window=256 --q q.npy --k k.npy --v v.npy --causal -o out.npy --out lse=lse.npy",
    [](Options& options) -> std::function<int()> {
      auto a = std::make_shared<Arguments>();
      options.text("spec SPEC", a->spec, "a mechanism with its options", true);
      options.group("Arrays");
      options.text("--q Q.npy", a->q, "queries");
      options.text("--k K.npy", a->k, "keys");
      options.text("--v V.npy", a->v, "values");
      options.text("--kv-lens L.npy", a->kv_lens,
                   "keys of each batch entry; the last query sits on the last one that exists");
      options.texts("--in NAME=FILE", a->more_in, "any other input, by port name");
      options.text("-o,--output OUT.npy", a->out, "where port out goes");
      options.texts("--out NAME=FILE", a->more_out, "any other output, by port name");
      options.group("How");
      options.flag("--causal", a->causal, "a query sees no later key");
      options.real("--scale S", a->scale, -1e30, 1e30, "multiplies the dot products (default 1/sqrt(D))");
      options.flag("--reference", a->reference, "compute the double-precision definition instead; outputs are f64");
      declare_threads(options, a->threads);
      declare_json(options, a->json);
      return [a, &options] { return apply(*a, options.given("--scale")); };
    }};

}  // namespace attend::app
