#pragma once
// Running a model: one session reads a prompt and answers under one policy; weights are shared.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/kv/store.h"
#include "attend/lm/model.h"
#include "attend/tensor/operator.h"
#include "attend/tensor/registry.h"

namespace attend {

// The policy that a text names, for a model in this compute mode: a codec that the text leaves out is f32 under
// ComputeMode::kF32 and f16 otherwise. Throws Error(kSpec).
Policy model_policy(std::string_view text, ComputeMode compute, const Registry& registry);

// The same policy with nothing dropped: plain softmax, same store and codec; in place of a codec of quantised rows the
// one that a text without a codec gets.
Policy exact_policy(const Policy& policy, ComputeMode compute, const Registry& registry);

// Which tokens of a prompt need logits.
enum class Outputs { kNone, kLast, kAll };

// Output logits arrive in batches of at most this many rows; no more are live at once.
inline constexpr int64_t kOutputRows = 16;

// Told of logits [rows, vocabulary]; row r is that of token `first + r` of the call's ids. Valid during the call.
using LogitsSink = std::function<void(int64_t first, const View& logits)>;

class Executor;
class Retainer;
class SelectiveReader;
class Trial;

// One cache and its position. Not for use by two threads at once. After an error in prefill, decode, verify or accept
// the session holds a part of the tokens: only clear() may follow.
class Session {
 public:
  // `context`: most tokens that the session may hold, 0 for the model's own limit. Memory follows use, not this limit.
  // `stores`: opens the store, in place of a factory that the policy's store makes for this session alone; sessions of
  // one paged factory hold equal beginnings once. It may go before the session does.
  // Throws Error(kSpec) for a policy that the model can't run, Error(kArgument) for a context beyond the model's.
  Session(std::shared_ptr<const LanguageModel> model, const Policy& policy, const Registry& registry,
          int64_t context = 0, const StoreFactory* stores = nullptr);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  // Appends `ids` in steps of at most `chunk` tokens; results don't depend on it. Retentions act as if the prompt ended
  // here. Throws Error(kArgument) for an empty prompt, an id outside the vocabulary, or tokens beyond the context,
  // before anything changes; Error(kCancelled), Error(kMemory).
  void prefill(std::span<const int32_t> ids, int64_t chunk, Outputs outputs, const LogitsSink& sink, Context& context);

  // Appends one token and returns the logits [vocabulary] of the next, valid until the next call.
  std::span<const float> decode(int32_t id, Context& context);

  // Logits [vocabulary] of the last row that prefill or decode gave out; empty if there is none. Valid until the next
  // call.
  std::span<const float> last_logits() const { return last_; }

  // Reads `ids` on trial: the logits [ids, vocabulary] after each are those that decode() of one after the other would
  // give, bit for bit, but no retention acts and no sum of weights takes them in until accept(). Several calls may
  // follow one another; no other member that changes the session may be called before accept(). The logits are valid
  // until the next call. Costs little more than one decode() while `ids` are few. Throws Error(kArgument) for no id,
  // one outside the vocabulary, or more than most_verified(); Error(kUnsupported) under a selector;
  // Error(kCancelled), Error(kMemory).
  View verify(std::span<const int32_t> ids, Context& context);
  void check_verifies() const;  // throws what verify() would throw of the policy

  // How many more tokens verify() takes now: to where a retention acts next, at most kOutputRows. At least 1 if nothing
  // is on trial and the context is not full.
  int64_t most_verified() const;

  // Keeps the first `count` tokens on trial and takes the others back: all that follows has the bits of decode() of
  // each that stays. last_logits() are then those after the last that stays, if the last verify() gave them. Throws
  // Error(kArgument) for a count beyond what is on trial, Error(kCancelled), Error(kMemory).
  void accept(int64_t count, Context& context);

  // Takes the newest tokens back, down to `position` of them: what follows has the same bits as if they had never been
  // read. last_logits() are empty then, unless nothing went. Throws Error(kArgument) unless it is 0..position();
  // Error(kUnsupported) where a retention has acted since, or summed weights of what would go, or a selector has chosen
  // anew what later tokens read. Nothing changes then. O(layers and heads), and what the store does to free memory.
  void truncate(int64_t position);
  void check_truncates(int64_t position) const;  // throws what truncate() would

  void clear();

  // A session that has read the same and goes on alone, with the same bits: samples and beams of one prompt. A paged
  // store shares its pages until one of the two writes them, others copy. The registry that the session was made with
  // must still be there. Throws Error(kMemory); Error(kFile) if a plan's file has changed or gone; Error(kArgument)
  // while tokens are on trial.
  Session fork() const;

  // Writes keys, values, the position and what retentions and selectors know to a file, and reads them back into a
  // session of the same model and policy (the store may be another) that has seen nothing: it goes on with the same
  // bits. Throws Error(kFile) for a file that can't be written, or is not what save() wrote for such a session, and
  // then the session has seen nothing; Error(kArgument) from restore() into a session that is not new, or too short,
  // and while tokens are on trial.
  void save(const std::filesystem::path& path) const;
  void check_saves() const;  // throws what save() would throw of the policy
  void restore(const std::filesystem::path& path);

  int64_t position() const { return position_; }  // tokens seen, on trial too
  int64_t context() const { return limit_; }
  // Memory of keys, values, positions, and of a selector's index.
  int64_t bytes() const;
  int64_t disk_bytes() const { return store_->disk_bytes(); }
  int64_t peak_bytes() const { return peak_bytes_; }  // most that it held after a step, before keys were dropped

  // Positions of the keys that a layer and kv head holds, ascending. Linear in their number. Throws Error(kArgument).
  std::vector<int32_t> kept_positions(int layer, int head) const;

  // Bytes of keys and values that the next token's query sees, over layers and kv heads, its own key included. Under a
  // selector, once a token was decoded: what the last one read, of the index, too.
  int64_t bytes_read_next() const;

 private:
  friend class Ensemble;

  Session(std::shared_ptr<const LanguageModel> model, const Policy& policy, const Registry& registry, int64_t context,
          std::unique_ptr<Store> store);

  void check(std::span<const int32_t> ids, int64_t chunk) const;
  void check_ids(std::span<const int32_t> ids) const;
  void check_settled(std::string_view op) const;  // nothing is on trial
  // Tokens of the next step of a prompt with `left` tokens to go.
  int64_t step(int64_t chunk, int64_t left) const;
  // Appends tokens of a prompt with `left` to go, themselves included, or with 0 a decoded one. Returns the output
  // activations of the last `wanted`, valid until the next call.
  View feed(std::span<const int32_t> ids, int64_t left, int64_t wanted, Context& context);
  // The logits of `hidden` in batches, the first of them those of token `from`.
  void give(const View& hidden, int64_t from, const LogitsSink& sink, Context& context);
  void retain(bool prompt_end, Context& context);
  // Of each kv head, keys of the first `position` tokens.
  void count_keys(int layer, int64_t position, std::vector<int64_t>& counts) const;
  void cut(int64_t position);
  // What a state holds beside the store.
  std::vector<std::byte> more_state() const;
  void take_more_state(std::span<const std::byte> bytes);

  std::shared_ptr<const LanguageModel> model_;
  Policy made_of_;
  const Registry* registry_;
  std::string policy_;  // that determines what is stored
  int64_t limit_, position_ = 0;
  std::unique_ptr<Store> store_;
  std::vector<std::unique_ptr<Operator>> mechanisms_;  // distinct ones
  std::vector<const Operator*> layers_;                // of each layer
  std::unique_ptr<Retainer> retainer_;
  std::unique_ptr<SelectiveReader> reader_;  // of the policy's selector, if any
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Trial> trial_;
  std::span<const float> last_;  // of logits_
  Buffer logits_;                // [kOutputRows, vocabulary]
  int64_t key_bytes_ = 0;        // of one key and its value
  int64_t peak_bytes_ = 0;
};

}  // namespace attend
