#include "sparse/key_graph.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/simd/dense.h"
#include "attend/simd/hook.h"
#include "attend/simd/key_rows.h"

namespace attend {
namespace {

constexpr size_t kEntries = 8;

// Sums in 16 lanes.
struct Vectors {
  template <bool kDistance>
  [[gnu::always_inline]] static inline float loop(const float* x, const float* y, int64_t d) {
    float lane[16] = {};
    int64_t c = 0;
    for (; c + 16 <= d; c += 16) {
#pragma omp simd
      for (int i = 0; i < 16; ++i) {
        const float a = x[c + i], b = y[c + i];
        lane[i] += kDistance ? (a - b) * (a - b) : a * b;
      }
    }
    for (int i = 0; c < d; ++c, ++i) lane[i] += kDistance ? (x[c] - y[c]) * (x[c] - y[c]) : x[c] * y[c];
    for (int step = 8; step; step /= 2)
      for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
    return lane[0];
  }
  ATTEND_TARGET_AVX2 static float dot_avx2(const float* x, const float* y, int64_t d) {
    return loop<false>(x, y, d);
  }
  ATTEND_TARGET_AVX512 static float dot_avx512(const float* x, const float* y, int64_t d) {
    return loop<false>(x, y, d);
  }
  ATTEND_TARGET_AVX2 static float distance_avx2(const float* x, const float* y, int64_t d) {
    return loop<true>(x, y, d);
  }
  ATTEND_TARGET_AVX512 static float distance_avx512(const float* x, const float* y, int64_t d) {
    return loop<true>(x, y, d);
  }
};

auto dot_of(Isa isa) {
  return isa == Isa::kAvx2 ? Vectors::dot_avx2 : Vectors::dot_avx512;
}
auto distance_of(Isa isa) {
  return isa == Isa::kAvx2 ? Vectors::distance_avx2 : Vectors::distance_avx512;
}

}  // namespace

const KeyRun& AnyRows::run_of(int64_t slot) const {
  return *(std::upper_bound(keys_.runs.begin(), keys_.runs.end(), slot,
                            [](int64_t s, const KeyRun& run) { return s < run.first_slot; }) -
           1);
}

void AnyRows::read(int64_t slot, float* to) const {
  const KeyRun& run = run_of(slot);
  const KeyRun one[] = {run};
  KeyView view = keys_;
  view.runs = one;
  read_keys(view, slot, 1, d_, isa_, to);
}

void AnyRows::fetch(int64_t slot) const {
  const KeyRun& run = run_of(slot);
  const auto* row = static_cast<const std::byte*>(run.keys().row(slot - run.first_slot));
  for (int64_t line = 0; line < row_bytes(run.k_type, d_); line += 64) __builtin_prefetch(row + line);
}

// Best first: the best node of the pool that was not expanded yet gives its edges, until all of the pool were.
template <class Score>
void KeyGraph::walk(const AnyRows& rows, int64_t effort, int32_t skip, Scratch& scratch, const Score& score) const {
  auto& pool = scratch.pool;
  pool.clear();
  scratch.seen.resize(static_cast<size_t>(nodes_), 0);
  if (++scratch.search == 0) {
    std::fill(scratch.seen.begin(), scratch.seen.end(), 0u);
    scratch.search = 1;
  }
  scratch.row.resize(static_cast<size_t>(d_));
  if (skip >= 0) scratch.seen[static_cast<size_t>(skip)] = scratch.search;
  size_t next = 0;  // no node before it waits
  auto visit = [&](std::span<const int32_t> nodes) {
    scratch.fresh.clear();
    for (int32_t node : nodes) {
      uint32_t& seen = scratch.seen[static_cast<size_t>(node)];
      if (seen == scratch.search) continue;
      seen = scratch.search;
      rows.fetch(first_ + node);
      scratch.fresh.push_back(node);
    }
    for (int32_t node : scratch.fresh) {
      rows.read(first_ + node, scratch.row.data());
      ++scratch.reads;
      float s = score(scratch.row.data());
      if (std::isnan(s)) s = -std::numeric_limits<float>::infinity();
      if (static_cast<int64_t>(pool.size()) == effort && s <= pool.back().score) continue;
      if (static_cast<int64_t>(pool.size()) == effort) pool.pop_back();
      const auto at = std::upper_bound(pool.begin(), pool.end(), s,
                                       [](float x, const Scratch::Place& place) { return x > place.score; });
      next = std::min(next, static_cast<size_t>(at - pool.begin()));
      pool.insert(at, {s, node, false});
    }
  };
  visit(entries_);
  while (next < pool.size()) {
    if (pool[next].expanded) {
      ++next;
      continue;
    }
    pool[next].expanded = true;
    const int32_t node = pool[next].node;
    const int32_t* edges = edges_.data() + node * 2 * half_;
    visit({edges, static_cast<size_t>(used_[static_cast<size_t>(2 * node)])});
    visit({edges + half_, static_cast<size_t>(used_[static_cast<size_t>(2 * node + 1)])});
  }
}

void KeyGraph::search(const KeyView& keys, const float* q, int64_t count, int64_t effort, Scratch& scratch,
                      std::vector<int64_t>& slots) const {
  const AnyRows rows(keys, d_, isa_);
  const auto dot = dot_of(isa_);
  walk(rows, std::max(count, effort), -1, scratch, [&](const float* row) { return dot(q, row, d_); });
  slots.clear();
  for (size_t i = 0; i < std::min(scratch.pool.size(), static_cast<size_t>(count)); ++i)
    slots.push_back(first_ + scratch.pool[i].node);
}

// Whether a node at `distance` is nearer than to all that were chosen: edges then lead in different directions.
bool KeyGraph::diverse(const AnyRows& rows, std::span<const int32_t> chosen, const float* row, float distance,
                       Scratch& scratch) const {
  scratch.other.resize(static_cast<size_t>(d_));
  for (int32_t other : chosen) {
    rows.read(first_ + other, scratch.other.data());
    if (distance_of(isa_)(row, scratch.other.data(), d_) < distance) return false;
  }
  return true;
}

bool KeyGraph::add_wanted(int32_t node, int32_t other) {
  int32_t* edges = wanted(node);
  int32_t& count = wanted_count(node);
  if (node == other || count == half_ || std::find(edges, edges + count, other) != edges + count) return false;
  edges[count++] = other;
  return true;
}

// `other` joins the near edges of a node; when there are too many, those that lead where a nearer one leads go first,
// then the farthest.
void KeyGraph::add_near(const AnyRows& rows, int32_t node, int32_t other, Scratch& scratch) {
  int32_t* edges = near(node);
  int32_t& count = near_count(node);
  if (count < half_) {
    edges[count++] = other;
    return;
  }
  std::vector<float> own(static_cast<size_t>(d_)), row(own);
  rows.read(first_ + node, own.data());
  std::vector<std::pair<float, int32_t>> all;
  for (int64_t e = 0; e <= half_; ++e) {
    const int32_t to = e < half_ ? edges[e] : other;
    rows.read(first_ + to, row.data());
    all.emplace_back(distance_of(isa_)(own.data(), row.data(), d_), to);
  }
  std::sort(all.begin(), all.end());
  std::vector<int32_t> chosen, rest;
  for (const auto& [distance, to] : all) {
    rows.read(first_ + to, row.data());
    (diverse(rows, chosen, row.data(), distance, scratch) ? chosen : rest).push_back(to);
  }
  chosen.insert(chosen.end(), rest.begin(), rest.end());
  std::copy_n(chosen.begin(), half_, edges);
}

// Edges of a new node to those near it, and back.
void KeyGraph::link(const AnyRows& rows, int32_t node, int64_t effort, Scratch& scratch) {
  std::vector<float> own(static_cast<size_t>(d_)), row(own);
  rows.read(first_ + node, own.data());
  const auto distance = distance_of(isa_);
  walk(rows, effort, node, scratch, [&](const float* other) { return -distance(own.data(), other, d_); });
  std::vector<int32_t> chosen;
  for (const auto& place : scratch.pool) {
    if (static_cast<int64_t>(chosen.size()) == half_) break;
    rows.read(first_ + place.node, row.data());
    if (diverse(rows, chosen, row.data(), -place.score, scratch)) chosen.push_back(place.node);
  }
  for (int32_t other : chosen) {
    int32_t* edges = near(node);
    if (std::find(edges, edges + near_count(node), other) == edges + near_count(node))
      add_near(rows, node, other, scratch);
    const int32_t* back = near(other);
    if (std::find(back, back + near_count(other), node) == back + near_count(other))
      add_near(rows, other, node, scratch);
  }
  if (entries_.empty()) entries_.push_back(node);
}

// For each query the key that it wants most leads to the ones that it wants next, and they lead back.
void KeyGraph::project(const KeyView& keys, std::span<const float> queries) {
  constexpr int64_t kRows = 32;  // queries at once
  const DenseKernels& kernels = dense_kernels(isa_);
  const int64_t count = static_cast<int64_t>(queries.size()) / d_;
  std::vector<int32_t> firsts(static_cast<size_t>(nodes_), 0);
  std::vector<float> rows(static_cast<size_t>(kPanelKeys * d_)), panel(rows),
      scores(static_cast<size_t>(kRows * kPanelKeys));
  using Best = std::vector<std::pair<float, int32_t>>;  // ascending: (-score, node)
  std::vector<Best> best(static_cast<size_t>(kRows));
  for (int64_t begin = 0; begin < count; begin += kRows) {
    const int64_t width = std::min(kRows, count - begin);
    for (Best& list : best) list.clear();
    for (int64_t at = 0; at < nodes_; at += kPanelKeys) {
      const int64_t some = std::min<int64_t>(kPanelKeys, nodes_ - at);
      read_keys(keys, first_ + at, some, d_, isa_, rows.data());
      kernels.pack(DType::kF32, rows.data(), d_, some, d_, panel.data());
      kernels.dots(queries.data() + begin * d_, d_, width, d_, panel.data(), scores.data(), kPanelKeys);
      for (int64_t r = 0; r < width; ++r) {
        Best& list = best[static_cast<size_t>(r)];
        for (int64_t j = 0; j < some; ++j) {
          const float score = scores[static_cast<size_t>(r * kPanelKeys + j)];
          if (std::isnan(score) || (static_cast<int64_t>(list.size()) > half_ && -score >= list.back().first)) continue;
          const std::pair<float, int32_t> place{-score, static_cast<int32_t>(at + j)};
          list.insert(std::upper_bound(list.begin(), list.end(), place), place);
          if (static_cast<int64_t>(list.size()) > half_ + 1) list.pop_back();
        }
      }
    }
    for (int64_t r = 0; r < width; ++r) {
      const Best& list = best[static_cast<size_t>(r)];
      if (list.empty()) continue;
      const int32_t pivot = list[0].second;
      ++firsts[static_cast<size_t>(pivot)];
      for (size_t i = 1; i < list.size(); ++i) {
        add_wanted(pivot, list[i].second);
        add_wanted(list[i].second, pivot);
      }
    }
  }
  // Searches begin at the keys that are wanted most often.
  std::vector<int32_t> order;
  for (int32_t node = 0; node < nodes_; ++node)
    if (firsts[static_cast<size_t>(node)] > 0) order.push_back(node);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return firsts[static_cast<size_t>(a)] > firsts[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), kEntries));
  entries_ = std::move(order);
}

void KeyGraph::build(const KeyView& keys, int64_t count, std::span<const float> queries, int64_t effort,
                     Scratch& scratch) {
  nodes_ = count;
  edges_.assign(static_cast<size_t>(count * 2 * half_), 0);
  used_.assign(static_cast<size_t>(count * 2), 0);
  entries_.clear();
  project(keys, queries);
  const AnyRows rows(keys, d_, isa_);
  for (int32_t node = 0; node < count; ++node) link(rows, node, effort, scratch);
}

void KeyGraph::save(StateWriter& out) const {
  out.put(nodes_), out.put(edges_), out.put(used_), out.put(entries_);
}

void KeyGraph::load(StateReader& in, int64_t most) {
  nodes_ = in.get<int64_t>();
  StateReader::require(nodes_ >= 0 && nodes_ <= most);
  in.get(edges_, nodes_ * 2 * half_);
  in.get(used_, nodes_ * 2);
  in.get(entries_, std::min<int64_t>(nodes_, kEntries));
  StateReader::require(static_cast<int64_t>(edges_.size()) == nodes_ * 2 * half_ &&
                       static_cast<int64_t>(used_.size()) == nodes_ * 2);
  for (int32_t count : used_) StateReader::require(count >= 0 && count <= half_);
  for (const std::vector<int32_t>* nodes : {&edges_, &entries_})
    for (int32_t node : *nodes) StateReader::require(node >= 0 && node < nodes_);
}

void KeyGraph::insert(const KeyView& keys, int64_t effort, Scratch& scratch) {
  const int32_t node = static_cast<int32_t>(nodes_++);
  edges_.resize(static_cast<size_t>(nodes_ * 2 * half_), 0);
  used_.resize(static_cast<size_t>(nodes_ * 2), 0);
  link(AnyRows(keys, d_, isa_), node, effort, scratch);
}

}  // namespace attend
