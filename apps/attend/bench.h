#pragma once
// Benchmark rows and what they are measured against.
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attend/tensor/context.h"
#include "attend/tensor/dtype.h"
#include "attend/tensor/operator.h"
#include "attend/tensor/view.h"
#include "attend/tensor/weight_type.h"

namespace attend::app {

// The machine's limits, as rates of all threads together. Each call measures anew, some 10 ms.
class Limits {
 public:
  explicit Limits(Context& context);
  double multiply_adds();            // f32 flops a second
  double bf16_multiply_adds();       // flops a second by dot products of bf16, or else as above
  double exponentials();             // f32 exps a second
  double reads();                    // bytes a second from memory
  double products(WeightType type);  // operations a second of products with such weights, two a multiply-add

 private:
  Context& context_;
  Buffer memory_;
  int64_t next_ = 0;
};

int64_t last_cache_bytes();

struct Quartiles {
  double low, median, high;
};
Quartiles quartiles(std::vector<double> values);

struct BenchResult {
  Quartiles seconds, share;
  Quartiles ratio{};  // of the time to that of the plain kernel, where a row compares the two; else 0
  double flops, bytes, error;
  std::string failure;  // a wrong kernel has no times
};

// A line of the report: what it is and how to measure it.
struct BenchRow {
  std::string name, spec, type;
  std::vector<std::pair<std::string, int64_t>> shape;
  bool cold;  // what is large comes from memory: calls rotate over copies beyond twice the last cache
  std::function<BenchResult(Limits& limits, Context& context)> run;
  std::function<BenchResult(Context& context)> prove = {};  // on a short text, without times; absent from some rows
};

std::vector<BenchRow> attention_rows();
std::vector<BenchRow> variant_rows();
std::vector<BenchRow> product_rows();
std::vector<BenchRow> grid_rows();
std::vector<BenchRow> store_rows();
std::vector<BenchRow> selector_rows();
std::vector<BenchRow> retention_rows();

// Prints what stores hold while texts come and go.
int bench_memory(bool json);

// What rows of a series say together, a line each: the worst cell of the grid, time a key, what threads gain.
std::vector<std::string> bench_findings(const std::vector<BenchRow>& rows, const std::vector<BenchResult>& results,
                                        int thread_count);

// Copies of `bytes` for calls to rotate over.
int copies_beyond_caches(double bytes);

// Times `call` in alternation with `limit`, which measures anew how long the machine must take for it, and with
// `plain`, if given, for the ratio.
void measure(BenchResult& result, const std::function<void()>& call, const std::function<double()>& limit,
             Context& context, const std::function<void()>& plain = {});

}  // namespace attend::app
