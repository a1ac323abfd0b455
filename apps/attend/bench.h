#pragma once
// Benchmark rows and what they are measured against.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attend/tensor/context.h"
#include "attend/tensor/dtype.h"
#include "attend/tensor/operator.h"

namespace attend::app {

struct BenchRow {
  std::string name, spec;
  int64_t b, hq, hkv, tq, tk, d, dv;
  DType kv_type;
  bool cold;  // keys and values come from memory: calls rotate over copies beyond twice the last cache
};

std::vector<BenchRow> bench_rows();

// The machine's limits, as rates of all threads together. Each call measures anew, some 10 ms.
class Limits {
 public:
  explicit Limits(Context& context);
  double multiply_adds();  // f32 flops a second
  double exponentials();   // f32 exps a second
  double reads();          // bytes a second from memory

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
  double flops, bytes, error;
  std::string failure;  // a wrong kernel has no times
};

BenchResult run_row(const BenchRow& row, Limits& limits, Context& context);

}  // namespace attend::app
