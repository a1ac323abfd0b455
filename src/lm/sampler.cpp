#include "attend/lm/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "attend/tensor/error.h"

namespace attend {

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  auto check = [](std::string_view name, double value, bool good, std::string_view rule) {
    if (!good) throw Error(ErrorKind::kArgument, "sampler", name, fmt::format("{}", value), rule);
  };
  check("temperature", options.temperature, options.temperature >= 0 && std::isfinite(options.temperature),
        "must be 0 or more");
  check("top_k", static_cast<double>(options.top_k), options.top_k >= 0, "must be 0 or more");
  check("top_p", options.top_p, options.top_p > 0 && options.top_p <= 1, "must be above 0 and at most 1");
  check("min_p", options.min_p, options.min_p >= 0 && options.min_p <= 1, "must be 0 to 1");
  check("repeat_penalty", options.repeat_penalty, options.repeat_penalty > 0 && std::isfinite(options.repeat_penalty),
        "must be above 0");
  check("repeat_window", static_cast<double>(options.repeat_window), options.repeat_window >= 0, "must be 0 or more");
}

void Sampler::accept(int32_t id) {
  recent_.push_back(id);
  if (static_cast<int64_t>(recent_.size()) > options_.repeat_window) recent_.pop_front();
}

int32_t Sampler::sample(std::span<const float> logits) {
  std::vector<int32_t> recent;
  if (options_.repeat_penalty != 1) {
    recent.assign(recent_.begin(), recent_.end());
    std::sort(recent.begin(), recent.end());
    recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  }
  const float penalty = static_cast<float>(options_.repeat_penalty);
  auto next_recent = recent.begin();
  candidates_.clear();
  Candidate best{-1, 0, 0};
  const bool greedy = options_.temperature == 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    float logit = logits[i];
    const int32_t id = static_cast<int32_t>(i);
    if (next_recent != recent.end() && *next_recent == id) {
      logit = logit > 0 ? logit / penalty : logit * penalty;
      ++next_recent;
    }
    if (std::isnan(logit)) continue;
    if (best.id < 0 || logit > best.logit) best = {id, logit, 0};
    if (!greedy) candidates_.push_back({id, logit, 0});
  }
  if (best.id < 0) throw Error(ErrorKind::kArgument, "sampler", "logits", "", "hold no number");
  if (greedy || !std::isfinite(best.logit)) return best.id;

  auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(candidates_.size())) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k - 1, candidates_.end(), before);
    candidates_.resize(static_cast<size_t>(options_.top_k));
  }
  std::sort(candidates_.begin(), candidates_.end(), before);
  double total = 0;
  for (Candidate& c : candidates_) total += c.weight = std::exp(static_cast<double>(c.logit) - best.logit);
  size_t kept = candidates_.size();
  if (options_.top_p < 1) {
    double sum = 0;
    for (kept = 0; kept < candidates_.size() && sum < options_.top_p * total; ++kept) sum += candidates_[kept].weight;
  }
  while (kept > 1 && candidates_[kept - 1].weight < options_.min_p) --kept;  // the first weight is 1
  kept = std::max<size_t>(kept, 1);
  candidates_.resize(kept);

  total = 0;
  for (Candidate& c : candidates_)
    total += c.weight = std::exp((static_cast<double>(c.logit) - best.logit) / options_.temperature);
  double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (const Candidate& c : candidates_) {
    draw -= c.weight;
    if (draw < 0) return c.id;
  }
  return candidates_.back().id;
}

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t stop = std::string::npos;
  for (const std::string& s : stops_) stop = std::min(stop, held_.find(s));
  if (stop != std::string::npos) {
    stopped_ = true;
    std::string shown = held_.substr(0, stop);
    held_.clear();
    return shown;
  }
  size_t keep = 0;  // longest end of the text that begins a stop string
  for (const std::string& s : stops_)
    for (size_t n = std::min(s.size() - 1, held_.size()); n > keep; --n)
      if (held_.compare(held_.size() - n, n, s, 0, n) == 0) {
        keep = n;
        break;
      }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

}  // namespace attend
