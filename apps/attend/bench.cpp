#include "bench.h"

#include <array>
#include <fstream>
#include <memory>

#include "attend/report/table.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

struct Arguments {
  std::string filter;
  int64_t threads = 0;
  bool json = false, memory = false, check = false;
};

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "unknown";
}

Json row_json(const BenchRow& row, const BenchResult& r, std::string_view isa, int threads) {
  Json shape;
  for (const auto& [axis, length] : row.shape) shape[axis] = length;
  Json j = {{"name", row.name},
            {"spec", row.spec},
            {"shape", shape},
            {"dtype", row.type},
            {"isa", isa},
            {"threads", threads},
            {"cold", row.cold},
            {"error", r.error},
            {"command", fmt::format("attend bench {} --threads {}", row.name, threads)}};
  if (!r.failure.empty()) {
    j["failure"] = r.failure;
    return j;
  }
  auto spread = [](const Quartiles& q, double factor) { return Json{q.low * factor, q.high * factor}; };
  j["ms"] = r.seconds.median * 1e3;
  j["ms_quartiles"] = spread(r.seconds, 1e3);
  j["gflops"] = r.flops / r.seconds.median / 1e9;
  j["gbps"] = r.bytes / r.seconds.median / 1e9;
  j["limit_share"] = r.share.median;
  j["limit_share_quartiles"] = spread(r.share, 1);
  if (r.ratio.median > 0) {
    j["ratio_to_plain"] = r.ratio.median;
    j["ratio_to_plain_quartiles"] = spread(r.ratio, 1);
  }
  return j;
}

std::vector<BenchRow> rows_of(const std::string& filter) {
  std::vector<BenchRow> rows;
  for (std::vector<BenchRow>& list : std::array{attention_rows(), variant_rows(), grid_rows(), product_rows(),
                                                store_rows(), selector_rows(), retention_rows()})
    for (BenchRow& row : list)
      if (row.name.find(filter) != std::string::npos) rows.push_back(std::move(row));
  if (rows.empty())
    throw UsageError(fmt::format("no benchmark row's name contains \"{}\"", safe_text(filter, Lines::kOne)));
  return rows;
}

// What a row refuses is its failure, so that the others are not lost.
BenchResult guarded(const std::function<BenchResult()>& run) {
  try {
    return run();
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kCancelled) throw;
    BenchResult result{};
    result.failure = e.what();
    return result;
  }
}

int check_rows(const Arguments& a) {
  ProgressBar bar;
  Context context = make_context(a.threads, nullptr);
  std::vector<BenchRow> rows = rows_of(a.filter);
  std::erase_if(rows, [](const BenchRow& row) { return !row.prove; });
  Json out = Json::array();
  Table table({{"row", true}, {"error"}, {"failure", true}});
  int64_t failed = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    bar.update(rows[i].name, static_cast<int64_t>(i), static_cast<int64_t>(rows.size()));
    const BenchResult r = guarded([&] { return rows[i].prove(context); });
    failed += !r.failure.empty();
    out.push_back({{"name", rows[i].name}, {"error", r.error}});
    if (!r.failure.empty()) out.back()["failure"] = r.failure;
    table.row({rows[i].name, number_text(r.error), r.failure});
  }
  bar.wipe();
  if (a.json) {
    print_json({{"rows", out}});
  } else {
    fmt::print("{}\n{} right, {} wrong\n", table.text(has_colour(Stream::kOut)),
               static_cast<int64_t>(rows.size()) - failed, failed);
  }
  return failed ? 1 : 0;
}

int bench(const Arguments& a) {
  ProgressBar bar;
  Context context = make_context(a.threads, nullptr);
  const std::vector<BenchRow> rows = rows_of(a.filter);

  const std::string_view isa = name_of(active_isa(context));
  Limits limits(context);
  // The highest rate of some: what else runs must not count as the machine.
  double flops = 0, exps = 0, reads = 0;
  constexpr int kRounds = 15;
  for (int i = 0; i < kRounds; ++i) {
    bar.update("this machine's limits", i, kRounds);
    flops = std::max(flops, limits.multiply_adds());
    exps = std::max(exps, limits.exponentials());
    reads = std::max(reads, limits.reads());
  }
  Json out = {{"machine",
               {{"cpu", processor_name()},
                {"isa", isa},
                {"threads", context.threads},
                {"f32_gflops", flops / 1e9},
                {"exp_gops", exps / 1e9},
                {"read_gbps", reads / 1e9},
                {"last_cache_bytes", last_cache_bytes()}}},
              {"rows", Json::array()}};
  Table table(
      {{"row", true}, {"ms"}, {"quartiles"}, {"GFLOP/s"}, {"GB/s"}, {"share of limit"}, {"time to plain"}, {"error"}});
  bool failed = false;
  std::vector<BenchResult> results;
  for (size_t i = 0; i < rows.size(); ++i) {
    bar.update(rows[i].name, static_cast<int64_t>(i), static_cast<int64_t>(rows.size()));
    const BenchResult r = results.emplace_back(guarded([&] { return rows[i].run(limits, context); }));
    out["rows"].push_back(row_json(rows[i], r, isa, context.threads));
    if (!r.failure.empty()) {
      failed = true;
      table.row({rows[i].name, "-", "-", "-", "-", r.failure, "-", number_text(r.error)});
      continue;
    }
    table.row(
        {rows[i].name, number_text(r.seconds.median * 1e3),
         fmt::format("{} .. {}", number_text(r.seconds.low * 1e3), number_text(r.seconds.high * 1e3)),
         number_text(r.flops / r.seconds.median / 1e9), number_text(r.bytes / r.seconds.median / 1e9),
         fmt::format("{:.0f}% ({:.0f} .. {:.0f})", r.share.median * 100, r.share.low * 100, r.share.high * 100),
         r.ratio.median > 0 ? fmt::format("{:.2f}x ({:.2f} .. {:.2f})", r.ratio.median, r.ratio.low, r.ratio.high) : "",
         number_text(r.error)});
  }
  bar.wipe();
  const std::vector<std::string> findings = bench_findings(rows, results, context.threads);
  out["findings"] = findings;
  if (a.json) {
    print_json(out);
  } else {
    fmt::print("{}, {}, {} threads: {} GFLOP/s f32, {} Gexp/s, {} GB/s read from memory\n\n{}", processor_name(), isa,
               context.threads, number_text(flops / 1e9), number_text(exps / 1e9), number_text(reads / 1e9),
               table.text(has_colour(Stream::kOut)));
    if (!findings.empty()) fmt::print("\n{}\n", fmt::join(findings, "\n"));
    fmt::print(
        "\nA limit of attention is visible pairs at the multiply-add rate of its arithmetic plus one exp each; of "
        "products, "
        "multiply-adds\n"
        "at the rate of the type's dot products. For decode rows it is the bytes of keys and values, or of weights, at "
        "the\n"
        "read bandwidth of memory, if that takes longer. Both are measured in alternation.\n");
  }
  return failed ? 1 : 0;
}

}  // namespace

const Command kBench = {
    "bench", "Measure kernels against this machine's own limits.",
    "Each row first proves its result against the double-precision definition; a wrong kernel has no time.\n\n"
    "Example:\n  attend bench exact/prefill\n  attend bench decode --json\n  attend bench exact/grid",
    [](Options& options) -> std::function<int()> {
      auto a = std::make_shared<Arguments>();
      options.text("filter FILTER", a->filter, "only rows whose name contains this");
      options.flag("--memory", a->memory, "instead: the memory that stores hold while texts come and go");
      options.flag("--check", a->check, "instead: prove the rows of mechanisms on short texts, without times");
      declare_threads(options, a->threads);
      declare_json(options, a->json);
      return [a] { return a->memory ? bench_memory(a->json) : a->check ? check_rows(*a) : bench(*a); };
    }};

}  // namespace attend::app
