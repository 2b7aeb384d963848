// Blocks of work on torch's own threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#define NF_INLINE static inline __attribute__((always_inline))
#define NF_EXPORT extern "C" __attribute__((visibility("default")))

namespace nf {

// GOMP_parallel of the library that torch has loaded, so that there is one pool of threads. Null: one thread.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
static Parallel parallel = nullptr;

template <class Work>
struct Job {
  std::atomic<int64_t> next;
  int64_t count;
  const Work& work;
};

template <class Work>
static void worker(void* data) {
  auto& job = *static_cast<Job<Work>*>(data);
  for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.work(i);
}

// work(0), ..., work(count - 1), each once; whoever is free takes the next, since cores may be shared with others.
template <class Work>
static void for_each(int64_t count, int threads, const Work& work) {
  Job<Work> job{{0}, count, work};
  if (parallel && threads > 1 && count > 1)
    parallel(worker<Work>, &job, static_cast<unsigned>(threads), 0);
  else
    worker<Work>(&job);
}

constexpr int64_t kRows = 16384;   // elements per block of rows

// Whole rows, so many at a time that a block is worth its start.
template <class Work>
static void in_rows(int64_t rows, int64_t columns, int threads, const Work& work) {
  const int64_t step = columns < kRows ? kRows / (columns > 0 ? columns : 1) : 1;
  for_each((rows + step - 1) / step, threads, [&](int64_t block) {
    const int64_t first = block * step;
    work(first, first + step < rows ? first + step : rows);
  });
}

struct bfloat16 {
  uint16_t bits;
};

template <class To, class From>
NF_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

NF_INLINE float load(float x) { return x; }
NF_INLINE double load(double x) { return x; }
NF_INLINE float load(bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

NF_INLINE void store(float& to, float x) { to = x; }
NF_INLINE void store(double& to, double x) { to = x; }
NF_INLINE void store(bfloat16& to, float x) {  // to nearest, ties to even
  uint32_t bits = bits_as<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

}  // namespace nf
