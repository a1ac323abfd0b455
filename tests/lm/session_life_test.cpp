// Sessions when things go wrong or go on for long: memory that is not there, being stopped half-way, thousands of
// texts.
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "support/expect_error.h"
#include "support/resident_memory.h"
#include "support/small_session.h"

namespace attend {
namespace {

using test::all_logits;
using test::expect_error;
using test::load;
using test::open;
using test::SmallModel;
using test::some_ids;

constexpr const char* kPolicies[] = {"softmax", "h2o:budget=24,stride=16 + paged:page=4", "quest:budget=16,page=4",
                                     "softmax:window=20 + virtual"};

// Lets this process map so much more and no further.
class MemoryLimit {
 public:
  explicit MemoryLimit(int64_t more) {
    getrlimit(RLIMIT_AS, &before_);
    int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit tight = before_;
    tight.rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + more);
    EXPECT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  }
  ~MemoryLimit() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

TEST(SessionLife, OutlivesMemoryThatIsNotThere) {
  if (!test::kTellsMemory) GTEST_SKIP() << "sanitizers need addresses of their own";
  SmallModel large;
  large.head = 64;
  large.context = 8000;
  const auto model = load(large);
  Context context(1);
  const std::vector<int32_t> ids = some_ids(5000);
  for (const char* policy : {"softmax", "paged:page=16", "quest:budget=64"}) {
    SCOPED_TRACE(policy);
    Session session = open(model, policy), other = open(model, policy);
    session.prefill(some_ids(200), 64, Outputs::kNone, nullptr, context);  // buffers that every step needs are there
    {
      const MemoryLimit limit(3 << 20);
      expect_error(ErrorKind::kMemory, "", [&] { session.prefill(ids, 64, Outputs::kNone, nullptr, context); });
    }
    session.clear();
    EXPECT_EQ(all_logits(session, some_ids(90), 16, context), all_logits(other, some_ids(90), 16, context));
  }
}

// Asks for a stop once so many tokens are read.
struct StopAt : Progress {
  std::stop_source source;
  int64_t at;
  explicit StopAt(int64_t tokens) : at(tokens) {}
  void update(std::string_view, int64_t done, int64_t) override {
    if (done >= at) source.request_stop();
  }
};

TEST(SessionLife, BeginsAnewAfterBeingStoppedAnywhere) {
  const auto model = load(SmallModel{});
  Context plain(2);
  for (const char* policy : kPolicies) {
    SCOPED_TRACE(policy);
    Session wanted = open(model, policy), session = open(model, policy);
    std::vector<float> all = all_logits(wanted, some_ids(60), 16, plain);
    const auto row = wanted.decode(3, plain);
    all.insert(all.end(), row.begin(), row.end());
    auto expect_fresh = [&] {
      session.clear();
      EXPECT_EQ(session.position(), 0);
      std::vector<float> got = all_logits(session, some_ids(60), 16, plain);
      const auto last = session.decode(3, plain);
      got.insert(got.end(), last.begin(), last.end());
      EXPECT_EQ(got, all);
    };
    StopAt half(20);
    Context stopping(2);
    stopping.progress = &half;
    stopping.stop = half.source.get_token();
    expect_error(ErrorKind::kCancelled, "",
                 [&] { session.prefill(some_ids(60), 8, Outputs::kNone, nullptr, stopping); });
    EXPECT_GE(session.position(), 20);
    EXPECT_LT(session.position(), 60);
    expect_fresh();
    expect_error(ErrorKind::kCancelled, "", [&] { session.decode(7, stopping); });
    expect_fresh();
    if (std::string_view(policy).starts_with("quest")) continue;
    expect_error(ErrorKind::kCancelled, "", [&] { session.verify(some_ids(2), stopping); });
    expect_fresh();
  }
}

TEST(SessionLife, ThousandsOfTextsLeaveNoMemoryBehind) {
  const auto model = load(SmallModel{});
  Context context(1);
  for (const char* policy : kPolicies) {
    SCOPED_TRACE(policy);
    constexpr int kTexts = 1500;
    const Policy made = model_policy(policy, model->compute(), registry());
    const auto stores = registry().make<StoreFactory>(*made[Kind::kStore]);
    int64_t before = 0;
    for (int text = 0; text < kTexts; ++text) {
      if (text == kTexts / 3) before = test::resident_bytes();
      Session session(model, made, registry(), 0, stores.get());
      session.prefill(some_ids(1 + text % 30), 16, Outputs::kLast, nullptr, context);
      session.decode(text % 269, context);
      if (text % 5 == 0) session.fork().decode(1, context);
      if (text % 7 == 0) session.truncate(session.position());
      if (text % 3 == 0) session.clear();
    }
    // A session holds over 10 KB beside the model: a thousand of them would show.
    if (test::kTellsMemory) {
      EXPECT_LT(test::resident_bytes() - before, 2 << 20);
    }
  }
}

}  // namespace
}  // namespace attend
