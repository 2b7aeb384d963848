// Activations and their gradients: flat memory in, flat memory out.
#pragma once

#include <cmath>

#include "parallel.h"

namespace nf {

constexpr int64_t kElements = 16384;  // per block: small enough for the second-level cache, large enough to be cheap

// 2^y for y within [-127, 128], infinite at its end, to 1e-7 of the value. A polynomial of the fraction times the
// exponent's bits: 12582912 = 1.5 * 2^23 makes the sum's low bits the nearest integer, 127 is the exponent's bias.
NF_INLINE float exp2_bounded(float y) {
  const float shift = 12582912.0f + 127.0f;
  float sum = y + shift;
  float r = y - (sum - shift);
  float p = 1.32647272527e-3f;
  p = p * r + 9.67151278578e-3f;
  p = p * r + 5.55073374447e-2f;
  p = p * r + 2.40222420831e-1f;
  p = p * r + 6.93146977598e-1f;
  p = p * r + 1.0f;
  return p * bits_as<float>(bits_as<uint32_t>(sum) << 23);
}

// exp(-z), with z / ln 2 given; infinite where it is above 2^127. Bounds by the bits, as integers: positive floats are
// in order as signed integers, negative ones after them and by magnitude as unsigned ones. Written as comparisons of
// floats, the compiler makes branches of them and computes all sides.
NF_INLINE float exp_minus(float scaled) {
  int32_t below = bits_as<int32_t>(128.0f), bits = bits_as<int32_t>(-scaled);
  uint32_t above = bits_as<uint32_t>(-127.0f), bounded = static_cast<uint32_t>(bits < below ? bits : below);
  return exp2_bounded(bits_as<float>(bounded < above ? bounded : above));
}
NF_INLINE double exp_minus(double scaled) { return std::exp(-scaled * 0.6931471805599453); }

// min(x, 2^126) for x of at least 0
NF_INLINE float finite(float x) {
  uint32_t bits = bits_as<uint32_t>(x), most = bits_as<uint32_t>(8.5070592e37f);
  return bits_as<float>(bits < most ? bits : most);
}
NF_INLINE double finite(double x) { return x < 1e300 ? x : 1e300; }

// g(x) = x * sigmoid(z(x)); gelu's tanh form is the one of z = 2 sqrt(2 / pi) (x + 0.044715 x^3), since
// 1 + tanh(u) = 2 sigmoid(2u). Unlike 1 + tanh(u) it does not cancel for negative x.
struct TanhGelu {
  template <class T>
  NF_INLINE T scaled(T x, T square) {  // z / ln 2
    return x * (T(2.302208198144325) + T(0.1029432395800235) * square);
  }
  template <class T>
  NF_INLINE T slope(T square) {  // dz / dx
    return T(1.5957691216057308) + T(0.21406444881780073) * square;
  }
};

struct Silu {
  template <class T>
  NF_INLINE T scaled(T x, T) {
    return x * T(1.4426950408889634);
  }
  template <class T>
  NF_INLINE T slope(T) {
    return T(1);
  }
};

template <class Curve>
struct Sigmoidal {
  template <class T>
  NF_INLINE T value(T x) {
    return x / (1 + exp_minus(Curve::scaled(x, x * x)));
  }
  // s = sigmoid(z): d(x s)/dx = s + x s (1 - s) dz/dx, with 1 - s = exp(-z) s, since the subtraction cancels; 0 instead
  // of 1 where exp(-z) is infinite, s being 0 there.
  template <class T>
  NF_INLINE T derivative(T x) {
    T square = x * x, power = exp_minus(Curve::scaled(x, square)), sigmoid = 1 / (1 + power);
    T inner = finite(power) * sigmoid * (x * Curve::slope(square));
    return sigmoid + sigmoid * inner;
  }
};

// By the sign of x; by bits, for the reason above.
NF_INLINE float magnitude(float x) { return bits_as<float>(bits_as<uint32_t>(x) & 0x7fffffffu); }
NF_INLINE double magnitude(double x) { return x < 0 ? -x : x; }
NF_INLINE float negative(float x, float then, float otherwise) {
  uint32_t mask = static_cast<uint32_t>(bits_as<int32_t>(x) >> 31);
  return bits_as<float>((bits_as<uint32_t>(then) & mask) | (bits_as<uint32_t>(otherwise) & ~mask));
}
NF_INLINE double negative(double x, double then, double otherwise) { return x < 0 ? then : otherwise; }

// The normal distribution's integral beyond x >= 0, given exp(-x^2 / 2): erfc(z) = exp(-z^2) t P(t), t = 1 / (1 + k z).
// P is fitted to 4e-8 of the value everywhere, which float32 rounds to 5e-7; to 5e-6 where bfloat16 rounds to 2e-3.
template <bool fine>
NF_INLINE float beyond(float x, float bell) {
  float t = 1 / (1 + (fine ? 0.212132034f : 0.311126984f) * x), p;
  if (fine) {
    p = -6.330829622e-2f;
    p = p * t + 2.359131497e-1f;
    p = p * t - 2.423459617e-1f;
    p = p * t + 2.585244646e-1f;
    p = p * t - 3.702459041e-2f;
    p = p * t + 1.031925851e-1f;
    p = p * t + 7.523443153e-2f;
    p = p * t + 8.521186006e-2f;
    p = p * t + 8.460237660e-2f;
  } else {
    p = -7.305320924e-2f;
    p = p * t + 1.753273577e-1f;
    p = p * t + 2.036426977e-2f;
    p = p * t + 1.317938954e-1f;
    p = p * t + 1.212845731e-1f;
    p = p * t + 1.242805299e-1f;
  }
  return bell * (t * p);
}
template <bool fine>
NF_INLINE double beyond(double x, double) {
  return 0.5 * std::erfc(x * 0.7071067811865476);
}

// x times the normal distribution's integral from -infinity to x.
template <bool fine>
struct Gelu {
  template <class T>
  NF_INLINE T value(T x) {
    T tail = beyond<fine>(magnitude(x), exp_minus(x * x * T(0.7213475204444817)));
    return x * negative(x, tail, 1 - tail);
  }
  template <class T>
  NF_INLINE T derivative(T x) {
    T bell = exp_minus(x * x * T(0.7213475204444817)), tail = beyond<fine>(magnitude(x), bell);
    T bounded = finite(magnitude(x)) * T(0.3989422804014327) * bell;
    return negative(x, tail - bounded, 1 - tail + bounded);
  }
};

struct Relu {
  template <class T>
  NF_INLINE T value(T x) {
    return x > 0 || x != x ? x : T(0);
  }
};

template <class Activation, class T>
NF_INLINE void activate(const T* __restrict x, T* __restrict y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(y[i], Activation::value(load(x[i])));
}

template <class Activation, class T>
NF_INLINE void activate_backward(const T* __restrict grad, const T* __restrict x, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(out[i], load(grad[i]) * Activation::derivative(load(x[i])));
}

#define NF_FORWARD(NAME, FUNCTION, TYPE) \
  static void NAME(const TYPE* x, TYPE* y, int64_t count) { activate<FUNCTION>(x, y, count); }
#define NF_BACKWARD(NAME, FUNCTION, TYPE)                                                            \
  static void NAME##_backward(const TYPE* grad, const TYPE* x, TYPE* out, int64_t count) { \
    activate_backward<FUNCTION>(grad, x, out, count);                                                \
  }
#define NF_ACTIVATION(NAME, FUNCTION, TYPE) NF_FORWARD(NAME, FUNCTION, TYPE) NF_BACKWARD(NAME, FUNCTION, TYPE)
NF_ACTIVATION(gelu_tanh_f32, Sigmoidal<TanhGelu>, float)
NF_ACTIVATION(gelu_tanh_bf16, Sigmoidal<TanhGelu>, bfloat16)
NF_ACTIVATION(gelu_tanh_f64, Sigmoidal<TanhGelu>, double)
NF_ACTIVATION(silu_f32, Sigmoidal<Silu>, float)
NF_ACTIVATION(silu_bf16, Sigmoidal<Silu>, bfloat16)
NF_ACTIVATION(silu_f64, Sigmoidal<Silu>, double)
NF_ACTIVATION(gelu_f32, Gelu<true>, float)
NF_ACTIVATION(gelu_bf16, Gelu<false>, bfloat16)
NF_ACTIVATION(gelu_f64, Gelu<true>, double)
NF_FORWARD(relu_f32, Relu, float)
NF_FORWARD(relu_bf16, Relu, bfloat16)
NF_FORWARD(relu_f64, Relu, double)
#undef NF_ACTIVATION
#undef NF_BACKWARD
#undef NF_FORWARD

// Applies a function of memory to blocks of it.
template <class T>
static void in_blocks(void (*forward)(const T*, T*, int64_t), const void* x, void* y, int64_t count, int threads) {
  for_each((count + kElements - 1) / kElements, threads, [&](int64_t block) {
    int64_t at = block * kElements, size = count - at < kElements ? count - at : kElements;
    forward(static_cast<const T*>(x) + at, static_cast<T*>(y) + at, size);
  });
}

template <class T>
static void in_blocks(void (*backward)(const T*, const T*, T*, int64_t), const void* grad, const void* x, void* out,
                      int64_t count, int threads) {
  for_each((count + kElements - 1) / kElements, threads, [&](int64_t block) {
    int64_t at = block * kElements, size = count - at < kElements ? count - at : kElements;
    backward(static_cast<const T*>(grad) + at, static_cast<const T*>(x) + at, static_cast<T*>(out) + at, size);
  });
}

}  // namespace nf
