#pragma once
// What the C++ workers of scripts/peers.py share: one loaded shape, timed on demand.
//
// Lines in:  load BATCH HEADS KV_HEADS QUERIES KEYS WIDTH TYPE CAUSAL WINDOW COPIES THREADS FOLDER
//            time CALLS
// Lines out: JSON: {"seconds": of one call} or {"error": why}. Loading reads FOLDER/{q,k,v}.f32 (raw, [B, H, T, D]),
//            attends once and writes FOLDER/out.f32.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace peers {

struct Shape {
  int64_t batch, heads, kv_heads, queries, keys, width;
  std::string type;  // of keys and values: f32, f16 or bf16
  bool causal;
  int64_t window;  // 0: none
  int copies;      // of keys and values; calls rotate over them
  int threads;
  std::string folder;

  // The query's position is its index plus keys - queries.
  bool visible(int64_t query, int64_t key) const {
    const int64_t position = query + keys - queries;
    return (!causal || key <= position) && (window == 0 || position - key < window);
  }
};

inline std::vector<float> read(const Shape& shape, const std::string& name, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::ifstream file(shape.folder + "/" + name + ".f32", std::ios::binary);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file) throw std::runtime_error("can't read " + name);
  return values;
}

inline void write(const Shape& shape, const std::vector<float>& values) {
  std::ofstream file(shape.folder + "/out.f32", std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file) throw std::runtime_error("can't write the result");
}

// `load` gives the call to time, which attends over the next copy.
inline int serve(const std::function<std::function<void()>(const Shape&)>& load) {
  std::function<void()> call;
  const auto seconds_of = [&](int64_t calls) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) call();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / static_cast<double>(calls);
  };
  std::puts("{\"ready\": true}");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::istringstream words(line);
      std::string word;
      words >> word;
      if (word == "load") {
        Shape s;
        words >> s.batch >> s.heads >> s.kv_heads >> s.queries >> s.keys >> s.width >> s.type >> s.causal >> s.window >>
            s.copies >> s.threads >> s.folder;
        if (!words) throw std::runtime_error("not a shape: " + line);
        call = nullptr;  // frees what it holds first
        call = load(s);
        std::printf("{\"seconds\": %.9f}\n", seconds_of(1));
      } else {
        int64_t calls = 1;
        words >> calls;
        if (calls > 1) call();  // threads wake up before the clock starts
        std::printf("{\"seconds\": %.9f}\n", seconds_of(calls));
      }
    } catch (const std::exception& error) {
      std::string text = error.what();
      for (char& c : text)
        if (c == '"' || c == '\\' || c == '\n') c = ' ';
      std::printf("{\"error\": \"%s\"}\n", text.c_str());
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace peers
