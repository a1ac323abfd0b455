#include "attend/tensor/cascade.h"

#include <gtest/gtest.h>

#include "attend/tensor/registry.h"
#include "support/expect_error.h"

namespace attend {
namespace {

void expect(std::string_view cascade, int as_written, int deferred, int running) {
  const Passes p = count_passes(parse_cascade(cascade), "j");
  EXPECT_EQ(p.as_written, as_written) << cascade;
  EXPECT_EQ(p.deferred, deferred) << cascade;
  EXPECT_EQ(p.running, running) << cascade;
}

// FuseMax, section 4: the 3-pass cascade, 2 with the division deferred, 1 with a running maximum.
TEST(Cascade, OfSoftmaxAttention) {
  expect(R"(s[i,j] = q[i,d] * k[j,d]
m[i] = max_j s[i,j]
p[i,j] = exp(s[i,j] - m[i])
z[i] = sum_j p[i,j]
w[i,j] = p[i,j] / z[i]
o[i,c] = sum_j w[i,j] * v[j,c])",
         3, 2, 1);
}

TEST(Cascade, WithoutAMaximum) {
  expect("s[i,j] = q[i,d] * k[j,d]\np[i,j] = exp(s[i,j])\nz[i] = sum_j p[i,j]\no[i,c] = sum_j p[i,j] / z[i] * v[j,c]",
         2, 1, 1);
}

TEST(Cascade, WithoutANormaliser) {
  expect("s[i,j] = q[i,d] * k[j,d]\no[i,c] = sum_j max(s[i,j], 0) * v[j,c]", 1, 1, 1);
}

// A function of final weights that is not linear can't be deferred.
TEST(Cascade, OfAPowerOfFinalWeights) {
  expect(R"(s[i,j] = q[i,d] * k[j,d]
p[i,j] = log(1 + exp(s[i,j]))
z[i] = sum_j p[i,j]
w[i,j] = pow(p[i,j] / z[i], 3)
y[i] = sum_j w[i,j]
o[i,c] = sum_j w[i,j] / y[i] * v[j,c])",
         3, 2, 2);
}

TEST(Cascade, RefusesWhatIsNoEinsum) {
  for (const char* bad :
       {"s = q", "s[i,j q[i]", "s[] = q[i]", "s[i] = (q[i]", "s[i] = q[i])", "[i] = q[i]", "s[i = q[i]", "s[i] = q[i,"})
    EXPECT_THROW(parse_cascade(bad), Error) << bad;
}

TEST(Cascade, EveryEntryMakesAtLeastThePassesOfItsOwn) {
  for (const Entry* entry : registry().entries()) {
    if (entry->cascade.empty()) continue;
    const Passes p = count_passes(parse_cascade(entry->cascade), "j");
    EXPECT_GE(entry->passes, p.running) << entry->name;
    EXPECT_GE(p.deferred, p.running);
    EXPECT_GE(p.as_written, p.deferred);
  }
}

}  // namespace
}  // namespace attend
