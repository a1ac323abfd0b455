#include "attend/lm/ensemble.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "attend/exact/rope.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"

namespace attend {
namespace {

constexpr size_t kMostReadings = 8;  // a row of logits each, and the merged one: 9 of kOutputRows

}  // namespace

Readings model_readings(std::string_view text, ComputeMode compute, const Registry& registry) {
  Readings readings;
  for (const std::string& policy : split_readings(text)) readings.push_back(model_policy(policy, compute, registry));
  if (readings.size() > kMostReadings)
    throw Error(ErrorKind::kSpec, "policy", "readings", std::to_string(readings.size()),
                fmt::format("must be at most {}", kMostReadings));
  return readings;
}

std::string to_string(const Readings& readings, const Registry& registry) {
  std::string text;
  for (const Policy& policy : readings) text.append(text.empty() ? "" : " | ").append(to_string(policy, registry));
  return text;
}

Ensemble::Ensemble(const std::shared_ptr<const LanguageModel>& model, const Readings& readings,
                   const Registry& registry, int64_t context)
    : model_(model) {
  if (readings.empty() || readings.size() > kMostReadings)
    throw Error(ErrorKind::kArgument, "ensemble", "readings", std::to_string(readings.size()),
                fmt::format("must be 1 to {}", kMostReadings));
  for (const Policy& policy : readings) sessions_.emplace_back(model, policy, registry, context);
}

void Ensemble::prefill(std::span<const int32_t> ids, int64_t chunk, Outputs outputs, const LogitsSink& sink,
                       Context& context) {
  if (sessions_.size() == 1) return sessions_.front().prefill(ids, chunk, outputs, sink, context);
  first().check(ids, chunk);
  const int64_t total = static_cast<int64_t>(ids.size());
  last_ = {};
  for (int64_t done = 0; done < total;) {
    const int64_t left = total - done;
    int64_t n = chunk;
    for (const Session& session : sessions_) n = std::min(n, session.step(chunk, left));
    const int64_t wanted = outputs == Outputs::kAll ? n : outputs == Outputs::kLast && n == left ? 1 : 0;
    hidden_.clear();
    for (Session& session : sessions_)
      hidden_.push_back(
          session.feed(ids.subspan(static_cast<size_t>(done), static_cast<size_t>(n)), left, wanted, context));
    done += n;
    merge(wanted, done - wanted, sink, context);
    if (context.progress) context.progress->update("reading", done, total);
  }
}

std::span<const float> Ensemble::decode(int32_t id, Context& context) {
  if (sessions_.size() == 1) return sessions_.front().decode(id, context);
  first().check({&id, 1}, 1);
  hidden_.clear();
  for (Session& session : sessions_) hidden_.push_back(session.feed({&id, 1}, 0, 1, context));
  merge(1, 0, nullptr, context);
  return last_;
}

void Ensemble::merge(int64_t wanted, int64_t from, const LogitsSink& sink, Context& context) {
  const int64_t count = static_cast<int64_t>(sessions_.size()), vocabulary = model_->graph().vocabulary;
  const int64_t batch = std::min(wanted, kOutputRows / (count + 1));
  auto reserve = [](Buffer& buffer, int64_t floats) {
    const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
    if (buffer.bytes() < bytes) buffer = Buffer(bytes);
  };
  reserve(logits_, count * batch * vocabulary);
  reserve(merged_, batch * vocabulary);
  for (int64_t r = 0; r < wanted; r += batch) {
    context.throw_if_stopped();
    const int64_t n = std::min(batch, wanted - r);
    for (int64_t s = 0; s < count; ++s) {
      const View& hidden = hidden_[static_cast<size_t>(s)];
      product(model_->matrix(model_->graph().output_matrix), hidden.as<float>() + r * hidden.shape[1], hidden.shape[1],
              logits_.as<float>() + s * n * vocabulary, vocabulary, n, context);
    }
    float* merged = merged_.as<float>();
    parallel_for(context.threads, n, [&](int64_t row, int) {
      View each = dense_view(logits_.as<float>() + row * vocabulary, DType::kF32, {count, vocabulary});
      each.stride[0] = n * vocabulary;
      merge_bucket_logits(each, dense_view(merged + row * vocabulary, DType::kF32, {vocabulary}));
    });
    last_ = {merged + (n - 1) * vocabulary, static_cast<size_t>(vocabulary)};
    if (sink) sink(from + r, dense_view(merged, DType::kF32, {n, vocabulary}));
  }
}

void Ensemble::truncate(int64_t position) {
  for (const Session& session : sessions_) session.check_truncates(position);
  if (position < this->position()) last_ = {};
  for (Session& session : sessions_) session.truncate(position);
}

Ensemble Ensemble::fork() const {
  Ensemble copy;
  copy.model_ = model_;
  for (const Session& session : sessions_) copy.sessions_.push_back(session.fork());
  if (!last_.empty()) {
    copy.merged_ = Buffer(static_cast<int64_t>(last_.size_bytes()));
    std::memcpy(copy.merged_.data(), last_.data(), last_.size_bytes());
    copy.last_ = {copy.merged_.as<float>(), last_.size()};
  }
  return copy;
}

void Ensemble::clear() {
  for (Session& session : sessions_) session.clear();
  last_ = {};
}

Session& Ensemble::alone() {
  if (sessions_.size() > 1)
    throw Error(ErrorKind::kUnsupported, "policy", fmt::format("{} readings", sessions_.size()), "",
                "merge what they predict: drafts need a policy without '|'");
  return sessions_.front();
}

void Ensemble::save(const std::filesystem::path& path) const {
  check_saves();
  first().save(path);
}

void Ensemble::restore(const std::filesystem::path& path) {
  check_saves();
  sessions_.front().restore(path);
}

void Ensemble::check_saves() const {
  if (sessions_.size() > 1)
    throw Error(ErrorKind::kUnsupported, "state", "policy", fmt::format("{} readings", sessions_.size()),
                "are not saved: name one");
  first().check_saves();
}

int64_t Ensemble::bytes() const {
  int64_t sum = 0;
  for (const Session& session : sessions_) sum += session.bytes();
  return sum;
}

int64_t Ensemble::disk_bytes() const {
  int64_t sum = 0;
  for (const Session& session : sessions_) sum += session.disk_bytes();
  return sum;
}

int64_t Ensemble::peak_bytes() const {
  int64_t sum = 0;
  for (const Session& session : sessions_) sum += session.peak_bytes();
  return sum;
}

int64_t Ensemble::bytes_read_next() const {
  int64_t sum = 0;
  for (const Session& session : sessions_) sum += session.bytes_read_next();
  return sum;
}

}  // namespace attend
