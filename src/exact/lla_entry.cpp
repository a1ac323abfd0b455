// The registry's entry for lla.
#include "attend/exact/lla.h"
#include "attend/reference/lla.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal, option::kScale, {"ridge", "", "penalty of the slope", "10", OptionType::kReal, 0.01, 1e30}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time Regression",
     "2510.01450", "293"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

LlaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .ridge = spec.real("ridge")};
}

using Vector = std::vector<double>;

double dot(const Vector& x, const Vector& y) {
  double sum = 0;
  for (size_t c = 0; c < x.size(); ++c) sum += x[c] * y[c];
  return sum;
}
double norm(const Vector& x) {
  return std::sqrt(dot(x, x));
}

// One row's equations, and what rounding does to their solutions. Scores move each weight by `weight` of itself; with
// it move sums over keys. The residual that CG sees and the true one part by a few roundings of the matrix a step.
struct PlaneErrors {
  double ridge, weight, steps, square = 0;  // square: mean of the terms of |z|^2
  Vector w;
  std::vector<Vector> z;
  Vector length, terms;  // of z, and of what z is the difference of

  PlaneErrors(const bound::SoftmaxNorms& n, double with_ridge, const exact::BoundRow& row, int64_t d)
      : ridge(with_ridge), steps(static_cast<double>(2 * d + 16)) {
    weight = 2 * bound::softmax_score(n) + 12 * bound::kEpsilon +
             bound::gamma(static_cast<int64_t>(row.keys.size()) + d + 8);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double x : row.dots) top = std::max(top, n.scale * x);
    for (double x : row.dots) sum += w.emplace_back(std::exp(n.scale * x - top));
    for (size_t j = 0; j < w.size(); ++j) {
      w[j] /= sum;
      const Vector key(row.keys[j], row.keys[j] + d);
      z.push_back(key);
      for (size_t c = 0; c < key.size(); ++c) z[j][c] -= row.q[c];
      length.push_back(norm(z[j]));
      terms.push_back(norm(key) + norm(row.q));
      square += w[j] * terms[j] * terms[j];
    }
  }

  // x of (M + ridge I) x = sum_j w[j] by[j] z[j], by conjugate gradients in double, and the norm of its error where
  // by[j] errs by error[j].
  Vector solve(const Vector& by, const Vector& error, double& of_x) const {
    Vector goal(z[0].size(), 0), x(goal);
    double moved = 0;
    for (size_t j = 0; j < w.size(); ++j) {
      for (size_t c = 0; c < goal.size(); ++c) goal[c] += w[j] * by[j] * z[j][c];
      moved += w[j] * length[j] * (error[j] + weight * std::abs(by[j]));
    }
    Vector residual = goal, step = goal;
    double left = dot(goal, goal);
    for (int64_t n = 0; n < 4 * static_cast<int64_t>(goal.size()) + 16 && left > 1e-24 * dot(goal, goal); ++n) {
      Vector product = step;
      for (double& e : product) e *= ridge;
      for (size_t j = 0; j < w.size(); ++j) {
        const double along = w[j] * dot(step, z[j]);
        for (size_t c = 0; c < goal.size(); ++c) product[c] += along * z[j][c];
      }
      const double way = left / dot(step, product), before = left;
      for (size_t c = 0; c < goal.size(); ++c) x[c] += way * step[c], residual[c] -= way * product[c];
      left = dot(residual, residual);
      for (size_t c = 0; c < goal.size(); ++c) step[c] = residual[c] + left / before * step[c];
    }
    for (size_t j = 0; j < w.size(); ++j) moved += weight * w[j] * length[j] * std::abs(dot(x, z[j]));
    of_x = (moved + 1e-6 * norm(goal) + steps * bound::kEpsilon * (ridge + square) * norm(x)) / ridge;
    return x;
  }
};

// What lla_attention_backward() says, step by step, with the error of each step; twice that, for products of errors.
double gradient_bound(const Spec& spec, const Tensors& in, std::string_view port) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), v = array(in, "v", "bound"),
             d_out = array(in, "grad out", "bound");
  const int64_t group = q.shape[1] / k.shape[1], dv = v.shape[3];
  const double chain = bound::gamma((port == "q" ? n.keys : g.rows) + 12);
  const double sum = bound::gamma(n.keys / 16 + 20), dots = bound::gamma(q.shape[3] + 8);
  double worst = 0;
  Vector by_key(static_cast<size_t>(k.shape[0] * k.shape[1] * k.shape[2]), 0);
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    const PlaneErrors x(n, spec.real("ridge"), row, d);
    const size_t keys = x.w.size();
    const int64_t key_row = (row.b * k.shape[1] + row.h / group) * k.shape[2],
                  out_row = (row.b * q.shape[1] + row.h) * q.shape[2] + row.i;
    double rho_error, u_error, share = 0, share_error = 0, mean = 0, mean_error = 0, loss = 0;
    const Vector rho = x.solve(Vector(keys, 1), Vector(keys, 0), rho_error);
    Vector p, p_error, product, product_error;
    for (int64_t c = 0; c < dv; ++c) loss = std::hypot(loss, value_at(d_out, out_row * dv + c));
    for (size_t j = 0; j < keys; ++j) {
      p.push_back(1 - dot(rho, x.z[j]));
      p_error.push_back(x.length[j] * rho_error + dots * x.terms[j] * norm(rho) + 2 * bound::kEpsilon);
      share += x.w[j] * p[j];
      share_error += x.w[j] * (x.weight * std::abs(p[j]) + p_error[j]);
      double to_value = 0, magnitude = 0;
      for (int64_t c = 0; c < dv; ++c) {
        const double one =
            value_at(d_out, out_row * dv + c) * value_at(v, (key_row + static_cast<int64_t>(j)) * dv + c);
        to_value += one, magnitude += std::abs(one);
      }
      product.push_back(to_value);
      product_error.push_back(bound::gamma(dv + 4) * magnitude);
      mean += x.w[j] * p[j] * to_value;
      mean_error +=
          x.w[j] * ((x.weight * std::abs(p[j]) + p_error[j]) * std::abs(to_value) + std::abs(p[j]) * product_error[j]);
    }
    mean /= share;
    const double relative = share_error / share + 4 * bound::kEpsilon;
    mean_error = mean_error / share + relative * std::abs(mean);
    Vector a, a_error, t_error, slope, slope_error;
    for (size_t j = 0; j < keys; ++j) {
      a.push_back(-(product[j] - mean) / share);
      a_error.push_back((product_error[j] + mean_error) / share + relative * std::abs(a[j]));
    }
    const Vector u = x.solve(a, a_error, u_error);
    double all = 0, all_error = 0;
    for (size_t j = 0; j < keys; ++j) {
      a[j] = dot(u, x.z[j]) - a[j];  // t
      t_error.push_back(a_error[j] + x.length[j] * u_error + dots * x.terms[j] * norm(u));
      slope.push_back(p[j] * a[j]);
      slope_error.push_back(p_error[j] * std::abs(a[j]) + std::abs(p[j]) * t_error[j] + sum * std::abs(slope[j]));
      all += x.w[j] * slope[j];
      all_error += x.w[j] * (slope_error[j] + x.weight * std::abs(slope[j]));
    }
    double of_q = 0;
    for (size_t j = 0; j < keys; ++j) {
      const double score = std::abs(slope[j] - all),
                   score_error = (x.weight + chain) * score + slope_error[j] + all_error + sum * std::abs(all);
      const double away = std::abs(p[j]) * norm(u) + std::abs(a[j]) * norm(rho);
      double error = p_error[j] * norm(u) + std::abs(p[j]) * u_error + t_error[j] * norm(rho) +
                     std::abs(a[j]) * rho_error + (x.weight + chain) * away +
                     n.scale * (port == "q" ? g.k_max : g.q_max) * score_error;
      if (port == "v") error = loss / share * (p_error[j] + (x.weight + relative + chain) * std::abs(p[j]));
      of_q += x.w[j] * error;
      by_key[static_cast<size_t>(key_row) + j] += x.w[j] * error;
    }
    worst = std::max(worst, of_q);
  });
  if (port != "q")
    for (worst = 0; const double key : by_key) worst = std::max(worst, key);
  return 2 * worst + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return gradient_bound(spec, in, output.substr(5));
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double ridge = spec.real("ridge");
  double worst = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    // Norms of what enters the equations of this row: z = k - q, m = mean of z.
    double query = 0, reach = 0, top = -1e300, sum = 0, mean = 0;
    for (double x : row.q) query += x * x;
    for (double dot : row.dots) top = std::max(top, n.scale * dot);
    std::vector<double> m(static_cast<size_t>(d), 0);
    for (size_t j = 0; j < row.keys.size(); ++j) {
      const double w = std::exp(n.scale * row.dots[j] - top);
      double norm = 0;
      for (int64_t c = 0; c < d; ++c) {
        norm += row.keys[j][c] * row.keys[j][c];
        m[static_cast<size_t>(c)] += w * (row.keys[j][c] - row.q[static_cast<size_t>(c)]);
      }
      sum += w;
      reach = std::max(reach, std::sqrt(norm) + std::sqrt(query));
    }
    for (double x : m) mean += x / sum * (x / sum);
    // rho = (M + ridge)^-1 m with M >= m m': |rho| <= 1 / sqrt(ridge), |rho| <= |m| / ridge, and the denominator
    // 1 - m' rho is at least ridge / (ridge + |m|^2).
    const double rho = std::min(1 / std::sqrt(ridge), std::sqrt(mean) / ridge);
    const double weight = 2 * bound::softmax_score(n) + 12 * bound::kEpsilon +
                          bound::gamma(static_cast<int64_t>(row.keys.size()) + d + 8);
    // The residual that CG sees and the true one part by a few roundings of the matrix a step.
    const double residual =
        1e-6 * std::sqrt(mean) + static_cast<double>(2 * d + 16) * bound::kEpsilon * (ridge + reach * reach) * rho;
    const double moved = (weight * (reach + reach * reach * rho) + residual) / ridge;
    const double gain = weight * (1 + rho * reach) + reach * moved;
    const double out = n.value * (1 + rho * reach) / (ridge / (ridge + mean));
    worst = std::max(worst, (n.value + out) * gain / (ridge / (ridge + mean)));
  });
  return worst + 1e-37;
}

constexpr Entry kLla = {
    .kind = Kind::kMechanism,
    .name = "lla",
    .room = "exact",
    .equation =
        "(o, S) = argmin of sum over visible j of w[j] |v[j] - o - S (k[j] - q)|^2 + ridge |S|^2,  w = softmax of "
        "scale * q.k[j]",
    .summary = "local linear attention: a plane through the values around a query",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input, up to the residual of conjugate gradients",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Rows, and their gradients, are solved by conjugate gradients to a relative residual of 1e-6.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "lla", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            lla_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "lla"); };
            lla_attention_backward(qkv, o, grad_out.out, {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_lla_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_lla(Registry& registry) {
  registry.add(kLla);
}

}  // namespace attend
