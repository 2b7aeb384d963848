// Merges: sums over places, which Squeeze-Excite and its gradient need, a line for each image and channel, and the
// merge with the next activation.
#pragma once

#include "elementwise.h"

namespace nf {

constexpr int64_t kChannels = 256;  // whose sums one block keeps at hand
constexpr int64_t kPlaces = 64;     // summed in float32; the sums' sum is a double

// Maps (images, channels, places) with a number per image and channel; `last`: in memory (images, places, channels).
struct Maps {
  int64_t images, channels, places;
  bool last;

  int64_t rows() const { return last ? images * places : images * channels; }
  int64_t columns() const { return last ? channels : places; }
};

template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// Channels in order in memory: sums[c] = sum over places of x[place, c] * y[place, c], without y of x alone.
template <bool product, class T>
NF_INLINE void sum_columns(const T* __restrict x, const T* __restrict y, int64_t places, int64_t stride, int64_t count,
                           typename Wide<T>::type* sums) {
  double total[kChannels] = {};
  for (int64_t first = 0; first < places; first += kPlaces) {
    const int64_t end = first + kPlaces < places ? first + kPlaces : places;
    typename Wide<T>::type some[kChannels] = {};
    for (int64_t place = first; place < end; ++place) {
      const T *a = x + place * stride, *b = product ? y + place * stride : a;
      for (int64_t c = 0; c < count; ++c) some[c] += product ? load(a[c]) * load(b[c]) : load(a[c]);
    }
    for (int64_t c = 0; c < count; ++c) total[c] += some[c];
  }
  for (int64_t c = 0; c < count; ++c) sums[c] = static_cast<typename Wide<T>::type>(total[c]);
}

template <bool product, class T>
NF_INLINE typename Wide<T>::type sum_row(const T* x, const T* y, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += 2048) {
    const int64_t end = first + 2048 < count ? first + 2048 : count;
    typename Wide<T>::type some = 0;
#pragma omp simd reduction(+ : some)
    for (int64_t i = first; i < end; ++i) some += product ? load(x[i]) * load(y[i]) : load(x[i]);
    total += some;
  }
  return static_cast<typename Wide<T>::type>(total);
}

// Rows [first, last) of memory: out = plus + gate * x.
template <class T>
NF_INLINE void gate_rows(const Maps& maps, const T* __restrict x, const typename Wide<T>::type* gate,
                         const typename Wide<T>::type* plus, T* __restrict out, int64_t first, int64_t last) {
  const int64_t count = maps.columns();
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * count;
    if (maps.last) {
      const auto *g = gate + row / maps.places * count, *p = plus + row / maps.places * count;
      for (int64_t c = 0; c < count; ++c) store(out[at + c], p[c] + g[c] * load(x[at + c]));
    } else {
      const auto g = gate[row], p = plus[row];
      for (int64_t i = at; i < at + count; ++i) store(out[i], p + g * load(x[i]));
    }
  }
}

// The merge with the next activation: out = shortcut + gate * branch, next = F(out) of the rounded sum. `gate` null: 1.
template <class F, class T>
NF_INLINE void merge_rows(const Maps& maps, const T* __restrict shortcut, const T* __restrict branch,
                          const typename Wide<T>::type* gate, T* __restrict out, T* __restrict next, int64_t first,
                          int64_t last) {
  using W = typename Wide<T>::type;
  const int64_t count = maps.columns();
  auto one = [&](int64_t i, W g) {
    T sum;
    store(sum, load(shortcut[i]) + g * load(branch[i]));
    out[i] = sum;
    store(next[i], F::value(load(sum)));
  };
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * count;
    if (gate && maps.last) {
      const W* g = gate + row / maps.places * count;
      for (int64_t c = 0; c < count; ++c) one(at + c, g[c]);
    } else {
      const W g = gate ? gate[row] : W(1);
      for (int64_t i = at; i < at + count; ++i) one(i, g);
    }
  }
}

// Overloads for each type.
#define NF_MERGE(TYPE)                                                                                               \
  static void columns_summed(const TYPE* x, const TYPE* y, int64_t places, int64_t stride, int64_t count,            \
                             Wide<TYPE>::type* sums) {                                                               \
    if (y)                                                                                                           \
      sum_columns<true, TYPE>(x, y, places, stride, count, sums);                                                    \
    else                                                                                                             \
      sum_columns<false, TYPE>(x, y, places, stride, count, sums);                                                   \
  }                                                                                                                  \
  static void rows_summed(const TYPE* x, const TYPE* y, int64_t rows, int64_t count, Wide<TYPE>::type* sums) {       \
    for (int64_t row = 0, at = 0; row < rows; ++row, at += count)                                                    \
      sums[row] = y ? sum_row<true, TYPE>(x + at, y + at, count) : sum_row<false, TYPE>(x + at, x, count);           \
  }                                                                                                                  \
  static void rows_gated(const Maps& maps, const TYPE* x, const Wide<TYPE>::type* gate,                              \
                         const Wide<TYPE>::type* plus, TYPE* out, int64_t first, int64_t last) {                     \
    gate_rows<TYPE>(maps, x, gate, plus, out, first, last);                                                          \
  }
NF_MERGE(float)
NF_MERGE(bfloat16)
NF_MERGE(double)
#undef NF_MERGE

// Over the places of each image and channel, in the same order whatever the number of threads.
template <class T>
static void sum_places(const Maps& maps, const void* x, const void* y, void* sums, int threads) {
  const T *left = static_cast<const T*>(x), *right = static_cast<const T*>(y);
  auto* out = static_cast<typename Wide<T>::type*>(sums);
  if (!maps.last) {
    in_rows(maps.rows(), maps.places, threads, [&](int64_t first, int64_t last) {
      const int64_t at = first * maps.places;
      rows_summed(left + at, right ? right + at : nullptr, last - first, maps.places, out + first);
    });
    return;
  }
  int64_t most = kChannels;  // of a block; fewer where the threads would have none, which does not change a sum
  while (most > 64 && maps.images * maps.channels < 2 * most * threads) most /= 2;
  const int64_t parts = (maps.channels + most - 1) / most;
  for_each(maps.images * parts, threads, [&](int64_t block) {
    const int64_t image = block / parts, c = block % parts * most;
    const int64_t at = image * maps.places * maps.channels + c;
    const int64_t count = maps.channels - c < most ? maps.channels - c : most;
    columns_summed(left + at, right ? right + at : nullptr, maps.places, maps.channels, count,
                   out + image * maps.channels + c);
  });
}

template <class T>
static void gated(const Maps& maps, const void* x, const void* gate, const void* plus, void* out, int threads) {
  using W = typename Wide<T>::type;
  in_rows(maps.rows(), maps.columns(), threads, [&](int64_t first, int64_t last) {
    rows_gated(maps, static_cast<const T*>(x), static_cast<const W*>(gate), static_cast<const W*>(plus),
               static_cast<T*>(out), first, last);
  });
}

template <class F, class T>
static void merged(const Maps& maps, const void* shortcut, const void* branch, const void* gate, void* out, void* next,
                   int threads) {
  using W = typename Wide<T>::type;
  auto* sum = static_cast<T*>(out);
  in_rows(maps.rows(), maps.columns(), threads, [&](int64_t first, int64_t last) {
    merge_rows<F, T>(maps, static_cast<const T*>(shortcut), static_cast<const T*>(branch), static_cast<const W*>(gate),
                     sum, static_cast<T*>(next), first, last);
  });
}

}  // namespace nf
