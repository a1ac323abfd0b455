#include "attend/conformance/conformance.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <system_error>
#include <thread>

#include "attend/simd/isa.h"
#include "conformance/suite.h"

namespace attend {
namespace {

// One entry on one instruction set.
struct Part {
  const Entry* entry;
  Isa isa;
  bool runs = true, done = false;
  ConformanceReport report = {};
  double seconds = 0;
  std::exception_ptr error = {};
};

bool has_option(const Entry& entry, std::string_view name) {
  return std::ranges::any_of(entry.options, [&](const Option& option) { return option.name == name; });
}

std::vector<Part> parts_of(const std::vector<const Entry*>& entries, std::optional<Isa> only) {
  std::vector<Part> parts;
  for (const Entry* entry : entries)
    for (const IsaInfo& info : isa_list()) {
      if (only && info.isa != *only) continue;
      Part& part = parts.emplace_back(Part{entry, info.isa});
      auto skip = [&](std::string name, std::string why) {
        part.report.skipped.push_back({std::move(name), std::move(why)});
      };
      const std::string name = fmt::format("{}/{}", entry->name, name_of(info.isa));
      if (entry->kind != Kind::kMechanism) {
        if (info.isa == Isa::kAvx2)
          skip(std::string(entry->name), fmt::format("a {} has no operator", name_of(entry->kind)));
        part.runs = false;
      } else if (!info.usable) {
        skip(name, info.why_not);
      } else if (info.isa == Isa::kAvx512Vnni || info.isa == Isa::kNeonDot) {
        const std::string_view same = name_of(info.isa == Isa::kNeonDot ? Isa::kNeon : Isa::kAvx512);
        skip(name, fmt::format("attention runs {}'s kernels there; only products of weights differ", same));
      } else if (info.isa == Isa::kAmx && !has_option(*entry, "compute")) {
        skip(name, "avx512bf16's kernels run there; tiles multiply where `compute` is an option");
      }
      part.runs &= part.report.skipped.empty();
    }
  return parts;
}

// Runs parts on threads of its own. They are not the pool's, which is left to the calls under test.
class SideBySide {
 public:
  SideBySide(std::vector<Part>& parts, int threads, const std::function<void(Part&)>& run) : parts_(parts), run_(run) {
    const auto most = std::min<int64_t>(threads, std::ranges::count(parts, true, &Part::runs));
    workers_.reserve(static_cast<size_t>(most));
    try {
      for (int64_t i = 0; i < most; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      if (workers_.empty()) work();
    }
  }
  ~SideBySide() {
    next_ = parts_.size();
    for (std::thread& worker : workers_) worker.join();
  }
  SideBySide(const SideBySide&) = delete;
  SideBySide& operator=(const SideBySide&) = delete;

  // Throws what running it threw.
  void wait_for(const Part& part) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return part.done || !part.runs; });
    if (part.error) std::rethrow_exception(part.error);
  }

 private:
  void work() {
    for (size_t i; (i = next_++) < parts_.size();) {
      Part& part = parts_[i];
      if (!part.runs) continue;
      const auto begin = std::chrono::steady_clock::now();
      std::exception_ptr error;
      try {
        run_(part);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      part.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      part.error = error;
      part.done = true;
      changed_.notify_all();
    }
  }

  std::vector<Part>& parts_;
  const std::function<void(Part&)>& run_;
  std::mutex mutex_;  // of `done`
  std::condition_variable changed_;
  std::atomic<size_t> next_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace

ConformanceReport check_conformance(const Registry& registry, const ConformanceOptions& options, Context& context) {
  std::vector<const Entry*> entries;
  for (const std::string& name : options.names) entries.push_back(&registry.at(name));
  if (entries.empty()) entries = registry.entries();
  std::vector<Part> parts = parts_of(entries, context.isa);
  const std::function<void(Part&)> run = [&](Part& part) {
    conformance::Suite(registry, *part.entry, part.isa, options.seed, context, part.report).run();
  };
  ConformanceReport report;
  const int64_t total = static_cast<int64_t>(parts.size());
  SideBySide running(parts, context.threads, run);
  ConformanceEntry sum{};
  for (size_t i = 0; i < parts.size(); ++i) {
    Part& part = parts[i];
    if (context.progress) context.progress->update(part.entry->name, static_cast<int64_t>(i), total);
    running.wait_for(part);
    if (i == 0 || part.entry != parts[i - 1].entry) sum = {part.entry->name, 0, 0, 0};
    sum.passed += part.report.passed;
    sum.failed += static_cast<int64_t>(part.report.failures.size());
    sum.seconds += part.seconds;
    report.passed += part.report.passed;
    std::ranges::move(part.report.failures, std::back_inserter(report.failures));
    std::ranges::move(part.report.skipped, std::back_inserter(report.skipped));
    const bool last = i + 1 == parts.size() || parts[i + 1].entry != part.entry;
    if (last && options.finished && sum.passed + sum.failed > 0) options.finished(sum);
  }
  if (context.progress) context.progress->update("", total, total);
  return report;
}

}  // namespace attend
