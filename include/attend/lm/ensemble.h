#pragma once
// One text read under several policies at once: the distributions of the next token merge at every step.
//
//   p[v] = sum_n a[n] p[n,v] / sum_n a[n]     a[n] = max over v of p[n,v], reading n's confidence
//
// With a rotary base for each reading these are attention buckets: where one base attends little, another attends
// much. What is given out as logits are the natural logarithms of p. One policy alone is a session, bit for bit.
//
// Source   Chen et al. 2023, arXiv:2312.04455, section 3.2.
// Cost     that of each reading, and two exponentials for each reading and entry of the vocabulary
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attend/lm/engine.h"

namespace attend {

// Policies that read one text side by side; most have one.
using Readings = std::vector<Policy>;

// "P | P | ..", each as model_policy() takes it. At most 8. Throws Error(kSpec).
Readings model_readings(std::string_view text, ComputeMode compute, const Registry& registry);
std::string to_string(const Readings& readings, const Registry& registry);

// A session over several caches; members mean what those of Session do, bytes are sums.
class Ensemble {
 public:
  Ensemble(const std::shared_ptr<const LanguageModel>& model, const Readings& readings, const Registry& registry,
           int64_t context = 0);

  void prefill(std::span<const int32_t> ids, int64_t chunk, Outputs outputs, const LogitsSink& sink, Context& context);
  std::span<const float> decode(int32_t id, Context& context);
  std::span<const float> last_logits() const { return sessions_.size() == 1 ? first().last_logits() : last_; }
  void truncate(int64_t position);
  Ensemble fork() const;
  void clear();
  // As Session's; Error(kUnsupported) for more than one reading.
  void save(const std::filesystem::path& path) const;
  void check_saves() const;
  void restore(const std::filesystem::path& path);

  int64_t position() const { return first().position(); }
  int64_t context() const { return first().context(); }
  int64_t bytes() const;
  int64_t disk_bytes() const;
  int64_t peak_bytes() const;
  int64_t bytes_read_next() const;
  Session& alone();  // the only reading. Throws Error(kUnsupported) if there are several
  std::span<const Session> sessions() const { return sessions_; }  // of each reading

 private:
  Ensemble() = default;
  const Session& first() const { return sessions_.front(); }
  // The merged logits of `wanted` rows, told in batches; the first of them is that of token `from`.
  void merge(int64_t wanted, int64_t from, const LogitsSink& sink, Context& context);

  std::shared_ptr<const LanguageModel> model_;
  std::vector<Session> sessions_;
  std::vector<View> hidden_;     // of each session's last step
  std::span<const float> last_;  // of merged_
  Buffer logits_, merged_;       // [readings, rows, vocabulary], [rows, vocabulary]
};

}  // namespace attend
