#include <cstdio>
#include <cstdlib>
#include <memory>

#include "attend/conformance/conformance.h"
#include "attend/simd/isa.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct Arguments {
  std::vector<std::string> names;
  int64_t threads = 0, seed = 1;
  bool json = false;
};

Json cases_json(const std::vector<ConformanceCase>& cases) {
  Json rows = Json::array();
  for (const ConformanceCase& c : cases) rows.push_back({{"name", c.name}, {"why", c.detail}});
  return rows;
}

int check(const Arguments& a) {
  ProgressBar bar;
  Context context = make_context(a.threads, &bar);
  if (std::getenv("ATTEND_ISA")) context.isa = active_isa(context);
  const bool colour = has_colour(Stream::kOut);
  Json entries = Json::array();
  auto finished = [&](const ConformanceEntry& e) {
    if (a.json) {
      entries.push_back({{"name", e.name}, {"passed", e.passed}, {"failed", e.failed}, {"seconds", e.seconds}});
      return;
    }
    bar.wipe();
    const std::string failed = fmt::format("{:>4} failed", e.failed);
    fmt::print("{:<16}{:>7} passed {} {:>8.1f} s\n", e.name, e.passed,
               coloured(failed, Colour::kRed, colour && e.failed > 0), e.seconds);
    std::fflush(stdout);
  };
  const ConformanceReport report =
      check_conformance(registry(), {a.names, static_cast<uint64_t>(a.seed), finished}, context);
  bar.wipe();
  if (a.json) {
    print_json({{"passed", report.passed},
                {"failed", report.failures.size()},
                {"entries", entries},
                {"skipped", cases_json(report.skipped)},
                {"failures", cases_json(report.failures)}});
    return report.failures.empty() ? 0 : 1;
  }
  for (const ConformanceCase& c : report.failures)
    fmt::print("{} {}: {}\n", coloured("failed", Colour::kRed, colour), c.name, c.detail);
  for (const ConformanceCase& c : report.skipped)
    fmt::print("{} {}: {}\n", coloured("skipped", Colour::kDim, colour), c.name, c.detail);
  fmt::print("{} passed, {} failed, {} skipped\n", report.passed, report.failures.size(), report.skipped.size());
  return report.failures.empty() ? 0 : 1;
}

}  // namespace

const Command kCheck = {
    "check",
    "Check mechanisms against their definitions on this machine, on every usable instruction set "
    "or that of ATTEND_ISA.",
    "A case is one mechanism on one instruction set with one shape and one property. Each mechanism gets a line "
    "when\nit is finished; its seconds are those of all threads together.\n\n"
    "Example:\n  attend check\n  attend check softmax --seed 7",
    [](Options& options) -> std::function<int()> {
      auto a = std::make_shared<Arguments>();
      options.texts("names NAME", a->names, "entries of attend list; all if none is given");
      options.integer("--seed", a->seed, 0, int64_t{1} << 62, "of the random inputs (default 1)");
      declare_threads(options, a->threads);
      declare_json(options, a->json);
      return [a] { return check(*a); };
    }};

}  // namespace attend::app
