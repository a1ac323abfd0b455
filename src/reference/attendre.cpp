// The definition in double precision: the stream step by step, the memory as a list of keys.
#include "attend/reference/attendre.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

struct Remembered {
  int64_t token, last_step, times;
};

struct Retrieved {
  size_t place;  // in the memory
  double score;
};

class AttendreReference : public Operator {
 public:
  explicit AttendreReference(const AttendreOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return reference::attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const Shape& k = reference::required(in, "k").shape;
    for (int64_t b = 0; b < k[0]; ++b)
      for (int64_t kv = 0; kv < k[1]; ++kv) stream(in, out, b, kv);
  }

 private:
  void stream(const Tensors& in, const Tensors& out, int64_t b, int64_t kv) const {
    const Shape &q = reference::required(in, "q").shape, &k = reference::required(in, "k").shape;
    const int64_t tokens = q[2], group = q[1] / k[1];
    std::vector<Remembered> memory;
    int64_t next_query = 0, step = 0;
    for (int64_t come = 0; come < tokens; ++step) {
      const int64_t before = come;
      come = std::min(tokens, come + o_.chunk);
      for (int64_t j = before; j < come; ++j) memory.push_back({j, step, 0});
      while (o_.memory > 0 && static_cast<int64_t>(memory.size()) > std::max(o_.memory, o_.chunk)) {
        size_t leaves = 0;
        for (size_t m = 1; m < memory.size(); ++m)
          if (memory[m].token < before && earlier(memory[m], memory[leaves])) leaves = m;
        memory.erase(memory.begin() + static_cast<int64_t>(leaves));
      }
      const int64_t served = come == tokens ? tokens : std::max(next_query, come - o_.delay);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
        for (int64_t i = next_query; i < served; ++i) attend(in, out, b, h, i, step, memory);
      next_query = served;
    }
  }

  // Memory is in the order of tokens, so that the older of two equal ones is the first.
  bool earlier(const Remembered& a, const Remembered& b) const {
    if (o_.eviction == Eviction::kLra) return a.last_step < b.last_step;
    if (o_.eviction == Eviction::kLfa) return a.times < b.times;
    return false;
  }

  void attend(const Tensors& in, const Tensors& out, int64_t b, int64_t h, int64_t i, int64_t step,
              std::vector<Remembered>& memory) const {
    const View &q = reference::required(in, "q"), &v = reference::required(in, "v");
    const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.shape[3])) : o_.scale;
    std::vector<Retrieved> retrieved;
    for (size_t m = 0; m < memory.size(); ++m) {
      if (o_.causal && memory[m].token > i) continue;
      double dot = 0;
      for (int64_t c = 0; c < q.shape[3]; ++c) dot += element(q, {b, h, i, c}) * keys.k(memory[m].token, c);
      retrieved.push_back({m, scale * dot});
    }
    if (o_.top > 0 && o_.top < static_cast<int64_t>(retrieved.size())) {
      // What is no number comes first: it shows.
      std::stable_sort(retrieved.begin(), retrieved.end(), [](const Retrieved& x, const Retrieved& y) {
        return std::isnan(x.score) ? !std::isnan(y.score) : x.score > y.score;
      });
      retrieved.resize(static_cast<size_t>(o_.top));
    }
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const Retrieved& r : retrieved) largest = std::isnan(r.score) ? r.score : std::max(largest, r.score);
    for (const Retrieved& r : retrieved) sum += std::exp(r.score - largest);
    for (const Retrieved& r : retrieved)
      if (std::exp(r.score - largest) * static_cast<double>(retrieved.size()) > sum) {
        memory[r.place].last_step = step;
        ++memory[r.place].times;
      }
    if (out.contains("out"))
      for (int64_t c = 0; c < v.shape[3]; ++c) {
        double o = 0;
        for (const Retrieved& r : retrieved) o += std::exp(r.score - largest) / sum * keys.v(memory[r.place].token, c);
        reference::store(reference::required(out, "out"), {b, h, i, c}, o);
      }
    if (out.contains("lse"))
      reference::store(reference::required(out, "lse"), {b, h, i},
                       retrieved.empty() ? largest : largest + std::log(sum));
  }

  AttendreOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_attendre_reference(const AttendreOptions& options) {
  return std::make_unique<AttendreReference>(options);
}

}  // namespace attend
