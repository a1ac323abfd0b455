// What rows say together.
#include <fmt/format.h>

#include <algorithm>

#include "bench.h"

namespace attend::app {
namespace {

struct Measured {
  const BenchRow* row;
  const BenchResult* result;
};

int64_t axis(const BenchRow& row, std::string_view name) {
  for (const auto& [axis, length] : row.shape)
    if (axis == name) return length;
  return 0;
}

// Short sequences: nowhere slower than separate products.
void grid(const std::vector<Measured>& all, std::vector<std::string>& findings) {
  const auto worst = std::max_element(all.begin(), all.end(), [](const Measured& a, const Measured& b) {
    return a.result->ratio.median < b.result->ratio.median;
  });
  if (worst != all.end())
    findings.push_back(fmt::format("grid: fused attention takes {:.2f}x the time of separate products at worst ({})",
                                   worst->result->ratio.median, worst->row->name));
}

// Decoding: the same time a key, however many there are.
void keys(const std::vector<Measured>& all, std::vector<std::string>& findings) {
  if (all.size() < 2) return;
  std::vector<double> each;
  std::string text;
  for (const Measured& m : all) {
    const int64_t count = axis(*m.row, "Tk");
    each.push_back(m.result->seconds.median * 1e9 / static_cast<double>(count));
    text += fmt::format("{}{:.2f} ns at {}k", text.empty() ? "" : ", ", each.back(), count / 1024);
  }
  const auto [least, most] = std::minmax_element(each.begin(), each.end());
  findings.push_back(fmt::format("a key decoded: {}; {:.2f}x from least to most", text, *most / *least));
}

// Threads: the row's gain beside that of the machine's limit.
void threads(const std::vector<Measured>& all, int count, std::vector<std::string>& findings) {
  for (size_t i = 0; i + 1 < all.size(); i += 2) {
    const BenchResult &one = *all[i].result, &many = *all[i + 1].result;
    const double gain = one.seconds.median / many.seconds.median, relative = many.share.median / one.share.median;
    const std::string name = all[i + 1].row->name;
    findings.push_back(fmt::format("{}: {} threads gain {:.2f}x, the machine's limit {:.2f}x: {:.2f} of it",
                                   name.substr(0, name.rfind('-')), count, gain, gain / relative, relative));
  }
}

// Selectors: where they say that they pay, they cost no more than exact attention.
void pays(const std::vector<Measured>& all, std::vector<std::string>& findings) {
  constexpr std::string_view kMark = "-pays-";
  for (const Measured& m : all) {
    const std::string_view name = m.row->name;
    const size_t mark = name.find(kMark);
    if (mark == name.npos) continue;
    findings.push_back(
        fmt::format("{} ({}) {} from {} keys: {:.2f}x the time of exact attention there",
                    name.substr(name.find('/') + 1, mark - name.find('/') - 1), name.substr(mark + kMark.size()),
                    m.result->ratio.median <= 1 ? "pays" : "DOES NOT PAY", axis(*m.row, "Tk"), m.result->ratio.median));
  }
}

}  // namespace

std::vector<std::string> bench_findings(const std::vector<BenchRow>& rows, const std::vector<BenchResult>& results,
                                        int thread_count) {
  auto of = [&](std::string_view prefix) {
    std::vector<Measured> chosen;
    for (size_t i = 0; i < rows.size(); ++i)
      if (rows[i].name.starts_with(prefix) && results[i].failure.empty()) chosen.push_back({&rows[i], &results[i]});
    return chosen;
  };
  std::vector<std::string> findings;
  grid(of("exact/grid-"), findings);
  keys(of("exact/keys-"), findings);
  pays(of("sparse/"), findings);
  // A pair lacks its partner where one failed or the filter left it out.
  std::vector<Measured> pairs;
  const std::vector<Measured> scaled = of("exact/threads-");
  for (size_t i = 0; i + 1 < scaled.size(); ++i) {
    const std::string &a = scaled[i].row->name, &b = scaled[i + 1].row->name;
    if (a.ends_with("-1") && b.ends_with("-all") && a.substr(0, a.rfind('-')) == b.substr(0, b.rfind('-')))
      pairs.insert(pairs.end(), {scaled[i], scaled[i + 1]});
  }
  threads(pairs, thread_count, findings);
  return findings;
}

}  // namespace attend::app
