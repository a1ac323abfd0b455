#include "query_moments.h"

#include <algorithm>

namespace attend {

void QueryMoments::add(std::span<const float> q) {
  const size_t d = q.size();
  ++count_;
  for (size_t a = 0; a < d; ++a) {
    const double by = q[a];
    sum_[a] += by;
    double* row = square_.data() + a * d;
#pragma omp simd
    for (size_t b = 0; b <= a; ++b) row[b] += by * static_cast<double>(q[b]);
  }
}

void QueryMoments::clear() {
  count_ = 0;
  std::fill(sum_.begin(), sum_.end(), 0.0);
  std::fill(square_.begin(), square_.end(), 0.0);
}

void QueryMoments::expect(std::span<const double> cosine, std::span<const double> sine, bool interleaved,
                          ExpectedQuery& to) const {
  const size_t d = sum_.size(), pairs = cosine.size();
  const double share = count_ > 0 ? 1 / static_cast<double>(count_) : 0;
  std::vector<double> mean(d), covariance(d * d);
  for (size_t a = 0; a < d; ++a) mean[a] = sum_[a] * share;
  for (size_t a = 0; a < d; ++a)
    for (size_t b = 0; b <= a; ++b)
      covariance[a * d + b] = covariance[b * d + a] = square_[a * d + b] * share - mean[a] * mean[b];
  auto turn = [&](double* x, size_t stride) {
    for (size_t p = 0; p < pairs; ++p) {
      double& first = x[(interleaved ? 2 * p : p) * stride];
      double& second = x[(interleaved ? 2 * p + 1 : p + pairs) * stride];
      const double u = first, v = second;
      first = u * cosine[p] - v * sine[p];
      second = v * cosine[p] + u * sine[p];
    }
  };
  turn(mean.data(), 1);
  for (size_t a = 0; a < d; ++a) turn(covariance.data() + a * d, 1);
  for (size_t b = 0; b < d; ++b) turn(covariance.data() + b, d);
  to.mean.assign(mean.begin(), mean.end());
  to.covariance.assign(covariance.begin(), covariance.end());
}

void QueryMoments::save(StateWriter& out) const {
  out.put(count_);
  out.put(sum_);
  out.put(square_);
}

void QueryMoments::load(StateReader& in) {
  const size_t d = sum_.size();
  count_ = in.get<int64_t>();
  in.get(sum_, static_cast<int64_t>(d));
  in.get(square_, static_cast<int64_t>(d * d));
  StateReader::require(count_ >= 0 && sum_.size() == d && square_.size() == d * d);
}

void mean_rotation(const RopeAngles& angles, int64_t first, int64_t count, Isa isa, std::vector<double>& cosine,
                   std::vector<double>& sine) {
  const size_t pairs = static_cast<size_t>(angles.pairs());
  std::vector<float> c(static_cast<size_t>(count) * pairs), s(c.size());
  angles.fill(first, count, row_ops(isa), c.data(), s.data());
  cosine.assign(pairs, 0.0);
  sine.assign(pairs, 0.0);
  for (size_t i = 0; i < c.size(); ++i) {
    cosine[i % pairs] += static_cast<double>(c[i]) / static_cast<double>(count);
    sine[i % pairs] += static_cast<double>(s[i]) / static_cast<double>(count);
  }
}

}  // namespace attend
