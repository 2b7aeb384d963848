// Small matrices of a linear layer, for a few images: the weight is read once, by all threads.
#pragma once

#include <cmath>

#include "parallel.h"

namespace nf {

struct Linear {
  int64_t images, inputs, outputs;
  int function;  // Then
  float factor;
};
enum Then { kAsItIs = 0, kThenRelu = 1, kThenSigmoid = 2 };  // the last one times factor

template <class T>
NF_INLINE float dot(const T* __restrict row, const float* __restrict x, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += load(row[i]) * x[i];
  return sum;
}

#define NF_DOT(TYPE) \
  static float dot_of(const TYPE* row, const float* x, int64_t count) { return dot<TYPE>(row, x, count); }
NF_DOT(float)
NF_DOT(bfloat16)
#undef NF_DOT

// x: (images, inputs), weight: (outputs, inputs), out: (images, outputs) in float32; bias like the weight, or null.
template <class T>
static void linear(const Linear& layer, const float* x, const T* weight, const T* bias, float* out, int threads) {
  in_rows(layer.outputs, layer.inputs, threads, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t image = 0; image < layer.images; ++image) {
        float y = dot_of(weight + row * layer.inputs, x + image * layer.inputs, layer.inputs);
        if (bias) y += load(bias[row]);
        if (layer.function == kThenRelu) y = y < 0 ? 0 : y;
        if (layer.function == kThenSigmoid) y = layer.factor / (1 + std::exp(-y));
        out[image * layer.outputs + row] = y;
      }
  });
}

}  // namespace nf
