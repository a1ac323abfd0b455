// What a call keeps beside its arguments: nothing that grows with the text forward, one float a query backward.
#include "exact/call.h"

namespace attend {
namespace {

int64_t bytes_of(const Context& context) {
  int64_t sum = 0;
  for (const Scratch& scratch : context.scratch) sum += scratch.bytes();
  return sum;
}

struct Used {
  int64_t forward, backward;
};

Used scratch_for(int64_t tokens) {
  test::SmallCall call(1, 4, 2, tokens, tokens, 64, 64);
  Used used{};
  Context context(2);
  call.run({.causal = true}, context);
  used.forward = bytes_of(context);
  std::vector<float> dq(call.q.size()), dk(call.k.size()), dv(call.v.size());
  const Qkv in = call.in();
  auto like = [](std::vector<float>& x, const View& v) { return dense_view(x.data(), DType::kF32, v.rank, v.shape); };
  Context fresh(2);
  softmax_attention_backward(in, {.causal = true}, call.outputs(), {.out = in.q},
                             {.q = like(dq, in.q), .k = like(dk, in.k), .v = like(dv, in.v)}, fresh);
  used.backward = bytes_of(fresh);
  return used;
}

TEST(Memory, DoesNotGrowWithTheText) {
  const Used brief = scratch_for(1024), twice = scratch_for(2048);
  EXPECT_EQ(brief.forward, twice.forward);
  EXPECT_EQ(twice.backward - brief.backward, 4 * 1024 * 4);  // a float a query and head
  // A matrix of scores of one head would take 16 MB.
  EXPECT_LT(twice.forward, 4 << 20);
  EXPECT_LT(twice.backward, 4 << 20);
}

}  // namespace
}  // namespace attend
