// The definition in double precision: the stream step by step, the memory as a list of keys.
#include "attend/reference/attendre.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using reference::element;

struct Remembered {
  int64_t token, last_step, times;
};

struct Retrieved {
  size_t place;  // in the memory
  double score;
  double weight = 0;
};

// A query and what it retrieved, with the tokens of the memory's places.
struct Row {
  int64_t b, h, i;
  double lse;
  const std::vector<Retrieved>& retrieved;
  const std::vector<Remembered>& memory;

  int64_t token(const Retrieved& r) const { return memory[r.place].token; }
};

class AttendreReference : public Operator {
 public:
  explicit AttendreReference(const AttendreOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return reference::attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &v = reference::required(in, "v"), result = reference::optional(out, "out"),
               lse = reference::optional(out, "lse");
    each_row(in, [&](const Row& row, const reference::Keys& keys) {
      for (int64_t c = 0; result.data && c < v.shape[3]; ++c) {
        double o = 0;
        for (const Retrieved& r : row.retrieved) o += r.weight * keys.v(row.token(r), c);
        reference::store(result, {row.b, row.h, row.i, c}, o);
      }
      if (lse.data) reference::store(lse, {row.b, row.h, row.i}, row.lse);
    });
  }

  // Softmax attention's over what was retrieved.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = reference::required(in, "q"), &v = reference::required(in, "v"),
               d_out = reference::optional(grad_out, "out"), d_lse = reference::optional(grad_out, "lse"),
               dq = reference::optional(grad_in, "q"), dk = reference::optional(grad_in, "k"),
               dv = reference::optional(grad_in, "v");
    for (const View& grad : {dq, dk, dv}) reference::clear(grad);
    each_row(in, [&](const Row& row, const reference::Keys& keys) {
      std::vector<double> gradient;
      double mean = 0;
      for (const Retrieved& r : row.retrieved) {
        double g = 0;
        for (int64_t c = 0; d_out.data && c < v.shape[3]; ++c) {
          const double d = element(d_out, {row.b, row.h, row.i, c});
          g += d * keys.v(row.token(r), c);
          reference::add(dv, {row.b, keys.head, row.token(r), c}, r.weight * d);
        }
        gradient.push_back(g);
        mean += r.weight * g;
      }
      const double lse = d_lse.data ? element(d_lse, {row.b, row.h, row.i}) : 0;
      for (size_t n = 0; n < gradient.size(); ++n)
        reference::add_dot(
            q, dq, dk, {row.b, row.h, row.i, row.i, keys}, row.token(row.retrieved[n]),
            reference::scale_of(o_.scale, q.shape[3]) * row.retrieved[n].weight * (gradient[n] - mean + lse));
    });
  }

 private:
  // use(row, keys) of every query.
  template <class Use>
  void each_row(const Tensors& in, Use use) const {
    const Shape& k = reference::required(in, "k").shape;
    for (int64_t b = 0; b < k[0]; ++b)
      for (int64_t kv = 0; kv < k[1]; ++kv) stream(in, b, kv, use);
  }

  template <class Use>
  void stream(const Tensors& in, int64_t b, int64_t kv, Use use) const {
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
        for (int64_t i = next_query; i < served; ++i) attend(in, b, h, i, step, memory, use);
      next_query = served;
    }
  }

  // Memory is in the order of tokens, so that the older of two equal ones is the first.
  bool earlier(const Remembered& a, const Remembered& b) const {
    if (o_.eviction == Eviction::kLra) return a.last_step < b.last_step;
    if (o_.eviction == Eviction::kLfa) return a.times < b.times;
    return false;
  }

  template <class Use>
  void attend(const Tensors& in, int64_t b, int64_t h, int64_t i, int64_t step, std::vector<Remembered>& memory,
              Use use) const {
    const View& q = reference::required(in, "q");
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
    for (Retrieved& r : retrieved) r.weight = std::exp(r.score - largest) / sum;
    for (const Retrieved& r : retrieved)
      if (std::exp(r.score - largest) * static_cast<double>(retrieved.size()) > sum) {
        memory[r.place].last_step = step;
        ++memory[r.place].times;
      }
    use(Row{b, h, i, retrieved.empty() ? largest : largest + std::log(sum), retrieved, memory}, keys);
  }

  AttendreOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_attendre_reference(const AttendreOptions& options) {
  return std::make_unique<AttendreReference>(options);
}

}  // namespace attend
