// Policies put together at random from all that the registry has: each is refused in one line when a session opens, or
// runs with the same bits whatever the chunks, the threads and the store.
#include <fmt/format.h>

#include <array>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attend/tensor/error.h"
#include "support/gate_file.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::GateFile;
using test::load;
using test::SmallModel;
using test::some_ids;

class Composer {
 public:
  Composer(unsigned seed, std::string gates) : random_(seed), gates_(std::move(gates)) {}

  // Specs of everything but a store.
  std::string next() {
    std::string policy =
        one_of(Kind::kMechanism, below(4) ? std::array{"softmax", "rope", "streaming", "dca"}[below(4)] : "");
    if (below(2)) policy += " + " + one_of(Kind::kRetention);
    if (below(4) == 0) policy += " + " + one_of(Kind::kAllocator);
    if (below(5) == 0)
      policy += fmt::format(" + duo:plan=\"{}\",share=0.5,sinks=3,recent=10,stride={}", gates_, stride());
    if (below(4) == 0) policy += " + " + one_of(Kind::kSelector);
    if (below(2)) policy += " + " + one_of(Kind::kCodec);
    return policy;
  }

 private:
  unsigned below(unsigned n) { return static_cast<unsigned>(random_() % n); }
  int stride() { return std::array{8, 16, 24}[below(3)]; }

  std::string one_of(Kind kind, std::string_view name = "") {
    std::vector<const Entry*> all;
    for (const Entry* entry : registry().entries())
      if (entry->kind == kind && (name.empty() || entry->name == name)) all.push_back(entry);
    const Entry& entry = *all[below(static_cast<unsigned>(all.size()))];
    std::string text(entry.name);
    char before = ':';
    auto set = [&](std::string_view option, const std::string& value) {
      for (const Option& o : entry.options)
        if (o.name == option && below(4) > 0) text += fmt::format("{}{}={}", std::exchange(before, ','), option, value);
    };
    const bool windowed = kind != Kind::kMechanism || below(2);
    if (windowed) set("window", std::to_string(20 + below(20)));
    if (windowed) set("sinks", std::to_string(below(5)));
    if (kind == Kind::kMechanism) set("positions", below(2) ? "cache" : "text");
    set("budget", std::to_string(20 + below(20)));
    set("residual", std::to_string(below(20)));
    set("full", std::to_string(below(20)));
    set("eight", std::to_string(below(20)));
    set("four", std::to_string(below(20)));
    set("group", below(2) ? "8" : "16");
    set("recent", std::to_string(1 + below(8)));
    set("observe", std::to_string(1 + below(8)));
    set("page", std::to_string(1 + below(8)));
    set("stride", std::to_string(stride()));
    return text;
  }

  std::mt19937 random_;
  std::string gates_;
};

class Composition : public testing::TestWithParam<std::string> {};

TEST_P(Composition, RunsWithTheSameBitsOrIsRefusedWhenASessionOpens) {
  constexpr unsigned kSeed = 41;
  constexpr int kPolicies = 400;
  constexpr size_t kPrompt = 90;
  SmallModel small;
  small.architecture = GetParam();
  small.head = 32;
  if (small.architecture == "gemma3") small.layers = 6;  // five with a window
  const auto model = load(small, ComputeMode::kDefault);
  const int layers = static_cast<int>(model->graph().layers.size());
  HeadGates gates{.model = model->graph().name, .layers = layers, .kv_heads = 2, .gates = {}, .made_by = ""};
  for (const AttentionLayer& layer : model->graph().layers)
    for (double gate : {0.3, 0.7}) gates.gates.push_back(layer.window > 0 ? HeadGates::kNone : gate);
  const GateFile file(gates);
  const std::vector<int32_t> ids = some_ids(130);
  std::vector<std::string> stores;
  for (const Entry* entry : registry().entries())
    if (entry->kind == Kind::kStore) stores.emplace_back(entry->name);

  Composer composer(kSeed, file.path.native());
  int ran = 0, refused = 0;
  for (int n = 0; n < kPolicies; ++n) {
    const std::string policy = composer.next();
    SCOPED_TRACE(fmt::format("seed {}, policy {}: {}", kSeed, n, policy));
    auto run = [&](Session session, int64_t chunk, int threads) {
      Context context(threads);
      std::vector<float> logits = all_logits(session, std::span(ids).first(kPrompt), chunk, context);
      for (size_t i = kPrompt; i < ids.size(); ++i) {
        const auto row = session.decode(ids[i], context);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      return logits;
    };
    const auto opened = [&](const std::string& store) {
      return test::open(model, fmt::format("{} + {}", policy, store));
    };
    std::optional<Session> first;
    try {
      first.emplace(opened(stores[0]));
    } catch (const Error& e) {
      const std::string_view said = e.what();
      EXPECT_TRUE(!said.empty() && said.find('\n') == said.npos) << said;
      EXPECT_TRUE(e.kind() == ErrorKind::kSpec || e.kind() == ErrorKind::kUnsupported ||
                  e.kind() == ErrorKind::kArgument)
          << said;
      ++refused;
      continue;
    }
    ++ran;
    const std::vector<float> wanted = run(*std::move(first), 512, 1);
    EXPECT_EQ(run(opened(stores[static_cast<size_t>(n) % stores.size()]), 7, 2), wanted);
    if (HasFailure()) return;
  }
  fmt::print("{} ran, {} were refused\n", ran, refused);
  EXPECT_GE(ran, kPolicies / 5);
  EXPECT_GE(refused, kPolicies / 20);
}

INSTANTIATE_TEST_SUITE_P(Architectures, Composition, testing::Values("llama", "gemma3"),
                         [](const auto& it) { return it.param; });

}  // namespace
}  // namespace attend
