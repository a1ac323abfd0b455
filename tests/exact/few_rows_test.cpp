// Few rows read keys where they lie, many rows pack them first: a row has the same bits either way, whatever runs its
// keys come in.
#include <fmt/format.h>

#include <cstring>

#include "attend/tensor/quantised_row.h"
#include "exact/call.h"

namespace attend {
namespace {

struct Coded {
  std::vector<uint8_t> bytes;
  int64_t row;

  Coded(const std::vector<float>& x, int64_t width, DType type) : row(row_bytes(type, width)) {
    const int64_t count = static_cast<int64_t>(x.size()) / width;
    bytes.resize(static_cast<size_t>(count * row));
    for (int64_t r = 0; r < count; ++r) {
      const float* from = x.data() + r * width;
      uint8_t* to = bytes.data() + r * row;
      if (is_quantised(type)) quantise_row(from, width, type, to);
      for (int64_t i = 0; i < width && !is_quantised(type); ++i) {
        const F16 half = to_f16(from[i]);
        const BF16 brain = to_bf16(from[i]);
        const void* element = type == DType::kF16    ? static_cast<const void*>(&half)
                              : type == DType::kBF16 ? static_cast<const void*>(&brain)
                                                     : from + i;
        std::memcpy(to + i * size_of(type), element, static_cast<size_t>(size_of(type)));
      }
    }
  }
};

// Runs of `rows` keys each.
std::vector<KeyRun> runs_of(const Coded& k, const Coded& v, DType type, int64_t keys, int64_t rows) {
  std::vector<KeyRun> runs;
  for (int64_t first = 0; first < keys; first += rows)
    runs.push_back({k.bytes.data() + first * k.row, v.bytes.data() + first * v.row, k.row / size_of(type),
                    v.row / size_of(type), first, std::min(rows, keys - first), type, type});
  return runs;
}

class FewRows : public testing::TestWithParam<DType> {};

TEST_P(FewRows, HaveTheBitsOfTheSameRowsAmongManyInAnyRuns) {
  const DType type = GetParam();
  constexpr int64_t kKeys = 1100;  // two splits and a part, its last vector not full
  for (Isa isa : test::usable_isas())
    for (int64_t d : {32, 96, 128, 512})              // q4_0 can be read in place where pairs of blocks are whole
      for (int64_t group : {1, 2, 3, 4, 6, 8, 10}) {  // one group of rows, and two
        SCOPED_TRACE(fmt::format("{} {} D {} rows {}", name_of(isa), name_of(type), d, group));
        // All queries see all keys; one token of `many` is what `few` has.
        constexpr int64_t kTokens = 13;
        test::SmallCall many(1, group, 1, kTokens, kKeys, d, d), few(1, group, 1, 1, kKeys, d, d);
        for (int64_t h = 0; h < group; ++h)
          std::copy_n(many.q.begin() + (h * kTokens + 7) * d, d, few.q.begin() + h * d);
        const Coded k(many.k, d, type), v(many.v, d, type);
        Context context = test::context_for(isa);
        auto attend_to = [&](test::SmallCall& call, int64_t rows_of_a_run) {
          const std::vector<KeyRun> runs = runs_of(k, v, type, kKeys, rows_of_a_run);
          const KeyView view{runs, {}};
          std::fill(call.out.begin(), call.out.end(), NAN);
          softmax_attention({.q = call.in().q, .keys = {&view, 1}, .dv = d}, {}, call.outputs(), context);
        };
        attend_to(many, kKeys);
        for (int64_t rows_of_a_run : {kKeys, int64_t{1}, int64_t{5}, int64_t{16}, int64_t{80}, int64_t{75}}) {
          attend_to(few, rows_of_a_run);
          for (int64_t h = 0; h < group; ++h) {
            for (int64_t c = 0; c < d; ++c)
              ASSERT_EQ(many.out[static_cast<size_t>((h * kTokens + 7) * d + c)],
                        few.out[static_cast<size_t>(h * d + c)])
                  << "head " << h << " column " << c << " runs of " << rows_of_a_run;
            ASSERT_EQ(many.lse[static_cast<size_t>(h * kTokens + 7)], few.lse[static_cast<size_t>(h)]);
          }
        }
      }
}

TEST_P(FewRows, HaveTheSameBitsBetweenSinksAndWindow) {
  const DType type = GetParam();
  constexpr int64_t kKeys = 400, kD = 128, kTokens = 13, kLast = kTokens - 1;
  const SoftmaxOptions options{.causal = true, .window = 100, .sinks = 20};
  for (Isa isa : test::usable_isas())
    for (int64_t group : {1, 4, 8})
      for (int64_t rows_of_a_run : {kKeys, int64_t{48}}) {
        SCOPED_TRACE(fmt::format("{} {} rows {} runs of {}", name_of(isa), name_of(type), group, rows_of_a_run));
        test::SmallCall many(1, group, 1, kTokens, kKeys, kD, kD), few(1, group, 1, 1, kKeys, kD, kD);
        for (int64_t h = 0; h < group; ++h)
          std::copy_n(many.q.begin() + (h * kTokens + kLast) * kD, kD, few.q.begin() + h * kD);
        const Coded k(many.k, kD, type), v(many.v, kD, type);
        const std::vector<KeyRun> runs = runs_of(k, v, type, kKeys, rows_of_a_run);
        const KeyView view{runs, {}};
        Context context = test::context_for(isa);
        for (test::SmallCall* call : {&many, &few})
          softmax_attention({.q = call->in().q, .keys = {&view, 1}, .dv = kD}, options, call->outputs(), context);
        for (int64_t h = 0; h < group; ++h) {
          for (int64_t c = 0; c < kD; ++c)
            ASSERT_EQ(many.out[static_cast<size_t>((h * kTokens + kLast) * kD + c)],
                      few.out[static_cast<size_t>(h * kD + c)])
                << "head " << h << " column " << c;
          ASSERT_EQ(many.lse[static_cast<size_t>(h * kTokens + kLast)], few.lse[static_cast<size_t>(h)]);
        }
      }
}

INSTANTIATE_TEST_SUITE_P(Types, FewRows,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace attend
