#include "attend/tensor/registry.h"

#include <fmt/format.h>

#include <algorithm>

namespace attend {
namespace {

constexpr size_t kLongestName = 64;

std::string shown(std::string_view text) {
  return fmt::format("\"{}\"", text.substr(0, 80));
}

// The rule of an unknown name: its nearest relative, or all there are if they are few.
std::string unknown(std::string_view name, const std::vector<std::string_view>& known, std::string_view what) {
  if (const auto nearest = nearest_name(name, known)) {
    return fmt::format("is no known {}; did you mean \"{}\"?", what, *nearest);
  }
  if (known.empty()) return fmt::format("is no known {}; there are none", what);
  constexpr size_t kMostListed = 20;
  if (known.size() > kMostListed) return fmt::format("is no known {}; attend list shows all {}", what, known.size());
  return fmt::format("is no known {}; known: {}", what, fmt::join(known, ", "));
}

// Canonical text of a value, so that equal values are equal texts.
std::string checked(const Entry& entry, const Option& option, std::string_view value) {
  auto refuse = [&](std::string_view rule) {
    throw Error(ErrorKind::kSpec, entry.name, option.name, shown(value), rule);
  };
  auto in_range = [&](double x) {
    if (x < option.min || x > option.max) refuse(fmt::format("must lie in {}..{}", option.min, option.max));
  };
  switch (option.type) {
    case OptionType::kInteger: {
      const int64_t x = parse_integer(value, fmt::format("{}: {}", entry.name, option.name));
      in_range(static_cast<double>(x));
      return fmt::format("{}", x);
    }
    case OptionType::kReal: {
      const double x = parse_real(value, fmt::format("{}: {}", entry.name, option.name));
      in_range(x);
      return fmt::format("{}", x == 0 ? 0.0 : x);
    }
    case OptionType::kFlag:
      if (value == "true" || value == "1") return "true";
      if (value == "false" || value == "0") return "false";
      refuse("must be true or false");
      break;
    case OptionType::kText:
      if (!option.choices.empty() &&
          (value.find('|') != std::string_view::npos ||
           fmt::format("|{}|", option.choices).find(fmt::format("|{}|", value)) == std::string::npos))
        refuse(fmt::format("must be one of {}", option.choices));
      break;
  }
  return std::string(value);
}

// Levenshtein distance with swaps of neighbours counted once; over two names of at most kLongestName.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// The default of a kind that a policy always has; empty for the others.
std::string_view default_of(Kind kind) {
  switch (kind) {
    case Kind::kMechanism:
      return "softmax";
    case Kind::kStore:
      return "contiguous";
    case Kind::kCodec:
      return "f16";
    default:
      return "";
  }
}

// The order in which a policy is written: what attends first, then who stays and where it lies.
constexpr Kind kWritten[] = {Kind::kMechanism, Kind::kSelector, Kind::kPlan, Kind::kAllocator,
                             Kind::kRetention, Kind::kStore,    Kind::kCodec};
static_assert(std::size(kWritten) == kKindCount);

Spec without_defaults(const Spec& spec, const Entry& entry) {
  Spec result{.name = spec.name, .options = {}};
  for (const Option& option : entry.options) {
    const std::string* value = spec.find(option.name);
    if (value && (option.fallback.empty() || *value != checked(entry, option, option.fallback))) {
      if (option.type != OptionType::kText || *value != option.fallback) result.set(option.name, *value);
    }
  }
  return result;
}

}  // namespace

void Registry::add(const Entry& entry) {
  auto require_free = [&](std::string_view name) {
    if (find(name)) throw Error(ErrorKind::kArgument, "registry", "name", shown(name), "is taken");
  };
  require_free(entry.name);
  for (std::string_view alias : entry.aliases) require_free(alias);
  entries_.push_back(&entry);
}

const Entry* Registry::find(std::string_view name) const {
  for (const Entry* entry : entries_) {
    if (entry->name == name) return entry;
    for (std::string_view alias : entry->aliases)
      if (alias == name) return entry;
  }
  return nullptr;
}

const Entry& Registry::at(std::string_view name) const {
  if (const Entry* entry = find(name)) return *entry;
  std::vector<std::string_view> names;
  for (const Entry* entry : entries_) names.push_back(entry->name);
  throw Error(ErrorKind::kSpec, "spec", "name", shown(name), unknown(name, names, "name"));
}

Spec Registry::complete(const Spec& spec) const {
  const Entry& entry = at(spec.name);
  std::vector<std::string_view> names;
  for (const Option& option : entry.options) names.push_back(option.name);
  for (const auto& [key, value] : spec.options) {
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      throw Error(ErrorKind::kSpec, entry.name, "option", shown(key), unknown(key, names, "option"));
    }
  }
  Spec result{.name = std::string(entry.name), .options = {}};
  for (const Option& option : entry.options) {
    const std::string* given = spec.find(option.name);
    if (!given && option.fallback.empty() && option.type != OptionType::kText) {
      throw Error(ErrorKind::kSpec, entry.name, option.name, "", "must be given");
    }
    result.set(option.name, checked(entry, option, given ? std::string_view(*given) : option.fallback));
  }
  return result;
}

Policy Registry::policy(std::string_view text) const {
  Policy policy;
  for (const Spec& spec : parse_specs(text)) {
    std::optional<Spec>& place = policy[at(spec.name).kind];
    if (place) {
      throw Error(ErrorKind::kSpec, "policy", name_of(at(spec.name).kind), shown(spec.name),
                  fmt::format("\"{}\" is given already; at most one of a kind", place->name));
    }
    place = complete(spec);
  }
  for (const Kind kind : kWritten) {
    if (!policy[kind] && !default_of(kind).empty()) policy[kind] = complete({std::string(default_of(kind)), {}});
  }
  return policy;
}

std::string to_string(const Policy& policy, const Registry& registry) {
  std::string text;
  for (const Kind kind : kWritten) {
    if (!policy[kind]) continue;
    const Spec spec = without_defaults(*policy[kind], registry.at(policy[kind]->name));
    if (spec.options.empty() && spec.name == default_of(kind)) continue;
    if (!text.empty()) text += " + ";
    text += to_string(spec);
  }
  return text.empty() ? std::string(default_of(Kind::kMechanism)) : text;
}

std::optional<std::string_view> nearest_name(std::string_view name, const std::vector<std::string_view>& candidates) {
  if (name.empty() || name.size() > kLongestName) return std::nullopt;
  std::optional<std::string_view> best;
  size_t best_distance = 0;
  for (const std::string_view candidate : candidates) {
    if (candidate.size() > kLongestName) continue;
    const bool begins = name.size() >= 2 && candidate.starts_with(name);
    const size_t distance = begins ? 1 : edit_distance(name, candidate);
    if (distance > std::max<size_t>(1, std::max(name.size(), candidate.size()) / 3)) continue;
    if (!best || distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

}  // namespace attend
