// Scaled Weight Standardization and its gradient, a row at a time: what is read twice is in the cache.
#pragma once

#include <cmath>
#include <cstdlib>

#include "parallel.h"

namespace nf {

constexpr int64_t kStretch = 2048;  // elements whose sum is taken in their own precision; these sums' sum is a double

template <class T>
NF_INLINE double sum_of(const T* x, int64_t count) {
  double total = 0;
  for (int64_t at = 0; at < count; at += kStretch) {
    int64_t end = at + kStretch < count ? at + kStretch : count;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = at; i < end; ++i) sum += x[i];
    total += sum;
  }
  return total;
}

// Sums of x - mean and of its square, the mean being an estimate.
template <class T>
NF_INLINE void moments_about(const T* x, T mean, int64_t count, double* first, double* second) {
  *first = *second = 0;
  for (int64_t at = 0; at < count; at += kStretch) {
    int64_t end = at + kStretch < count ? at + kStretch : count;
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
    for (int64_t i = at; i < end; ++i) {
      T away = x[i] - mean;
      sum += away;
      squares += away * away;
    }
    *first += sum;
    *second += squares;
  }
}

template <class T, class Grad>
NF_INLINE void gradient_sums(const Grad* grad, const T* x, T mean, int64_t count, double* total, double* dot) {
  *total = *dot = 0;
  for (int64_t at = 0; at < count; at += kStretch) {
    int64_t end = at + kStretch < count ? at + kStretch : count;
    T sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t i = at; i < end; ++i) {
      T g = load(grad[i]);
      sum += g;
      product += g * (x[i] - mean);
    }
    *total += sum;
    *dot += product;
  }
}

// A weight of `rows` output units; gain may be null. Its mean is mean + rest: what the sum's rounding left, found on the
// way, so that weights far from 0 lose nothing. Where var * N is below eps, rstd is kept with a minus sign: the
// bound does not depend on the weight, so no gradient goes through the variance.
template <class T>
struct Weight {
  const T* value;
  const T* gain;
  T* mean;
  T* rest;
  T* rstd;
  double scale, eps;
  bool add_eps;
  int64_t rows, columns;
};

template <class T>
NF_INLINE T factor_of(const Weight<T>& weight, int64_t row) {
  return std::abs(weight.rstd[row]) * (weight.gain ? weight.gain[row] : T(1)) * static_cast<T>(weight.scale);
}

template <class T, class Out>
NF_INLINE void standardize(const Weight<T>& weight, Out* out, int64_t first, int64_t last) {
  const int64_t count = weight.columns;
  for (int64_t row = first; row < last; ++row) {
    const T* x = weight.value + row * count;
    const T mean = static_cast<T>(sum_of(x, count) / count);
    double away, squares;
    moments_about(x, mean, count, &away, &squares);
    squares -= away * away / count;  // var * N
    if (squares < 0) squares = 0;  // by rounding
    const bool bounded = !weight.add_eps && squares < weight.eps;
    const double square = weight.add_eps ? squares + weight.eps * count : (bounded ? weight.eps : squares);
    const T rstd = static_cast<T>(1 / std::sqrt(square));
    weight.mean[row] = mean;
    weight.rest[row] = static_cast<T>(away / count);
    weight.rstd[row] = bounded ? -rstd : rstd;
    const T factor = factor_of(weight, row), offset = -weight.rest[row] * factor;
    Out* __restrict y = out + row * count;
    for (int64_t i = 0; i < count; ++i) store(y[i], (x[i] - mean) * factor + offset);
  }
}

// grad_weight may be null. dots[row] is the gradient of the row's factor: sum of grad * (w - mean).
template <class T, class Grad>
NF_INLINE void standardize_backward(const Weight<T>& weight, const Grad* grad, T* grad_weight, double* dots,
                                    int64_t first, int64_t last) {
  const int64_t count = weight.columns;
  for (int64_t row = first; row < last; ++row) {
    const T* x = weight.value + row * count;
    const Grad* g = grad + row * count;
    const T mean = weight.mean[row], rstd = weight.rstd[row], factor = factor_of(weight, row);
    double total, dot;
    gradient_sums(g, x, mean, count, &total, &dot);
    dots[row] = dot -= total * weight.rest[row];
    if (!grad_weight) continue;
    const T slope = rstd < 0 ? T(0) : static_cast<T>(dot * rstd * rstd);
    const T middle = static_cast<T>(total / count) - slope * weight.rest[row];
    T* __restrict out = grad_weight + row * count;
    for (int64_t i = 0; i < count; ++i) out[i] = factor * ((load(g[i]) - middle) - slope * (x[i] - mean));
  }
}

#define NF_STANDARDIZE(NAME, T, OUT)                                                                         \
  static void NAME(const Weight<T>& weight, OUT* out, int64_t first, int64_t last) {               \
    standardize(weight, out, first, last);                                                                   \
  }                                                                                                          \
  static void NAME##_backward(const Weight<T>& weight, const OUT* grad, T* grad_weight, double* dots, \
                                        int64_t first, int64_t last) {                                       \
    standardize_backward(weight, grad, grad_weight, dots, first, last);                                      \
  }
NF_STANDARDIZE(standardize_f32, float, float)
NF_STANDARDIZE(standardize_bf16, float, bfloat16)
NF_STANDARDIZE(standardize_f64, double, double)
#undef NF_STANDARDIZE

// Gradients of gain (may be null) and scale out of the rows' dots, in the order of the rows.
template <class T>
static double gradient_of_factors(const Weight<T>& weight, const double* dots, T* grad_gain) {
  double grad_scale = 0;
  for (int64_t row = 0; row < weight.rows; ++row) {
    const double part = dots[row] * std::abs(weight.rstd[row]);
    if (grad_gain) grad_gain[row] = static_cast<T>(part * weight.scale);
    grad_scale += part * (weight.gain ? weight.gain[row] : T(1));
  }
  return grad_scale;
}

}  // namespace nf
