#pragma once
// How many passes over the keys a mechanism needs, found from its definition as a cascade of einsums.
//
//   s[i,j] = q[i,d] * k[j,d]
//   m[i]   = max_j s[i,j]
//   p[i,j] = exp(s[i,j] - m[i])
//   z[i]   = sum_j p[i,j]
//   o[i,c] = sum_j p[i,j] / z[i] * v[j,c]
//
// An einsum that streams over the rank j needs what is reduced over j before it: each such wait begins another pass.
// Two rewritings save passes: a factor without j moves behind the sum over j (division deferred), and a maximum under
// an exponential becomes a running one whose changes rescale what was summed so far.
//
// Source   Nayak et al. 2024, arXiv:2406.10491, sections 3 and 4 (passes of a cascade; 3-, 2- and 1-pass attention).
#include <string>
#include <string_view>
#include <vector>

namespace attend {

struct Einsum {
  enum class Role { kFactor, kShift, kOther };  // multiplies or divides; subtracted inside an exp; anything else
  struct Operand {
    std::string name;
    std::vector<std::string> ranks;
    Role role;
    bool has(std::string_view rank) const;
  };
  std::string name, reduction, reduced;  // reduction: "sum", "max" or empty; reduced: its rank
  std::vector<std::string> ranks;
  std::vector<Operand> operands;
};

// One einsum a line. Throws Error(kArgument) naming the line that is not one.
std::vector<Einsum> parse_cascade(std::string_view text);

struct Passes {
  int as_written, deferred, running;  // with no rewriting, the first, both
};

// Passes over `rank`.
Passes count_passes(const std::vector<Einsum>& cascade, std::string_view rank);

}  // namespace attend
