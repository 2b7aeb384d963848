// Compiled kernels for the CPU, a plain C interface: no header of torch or Python, so that one build serves them all.
// normfree.kernels loads this library with ctypes; what a kernel computes is in the header named like its module.
#include "elementwise.h"
#include "gate.h"
#include "merge.h"
#include "optimizer.h"
#include "standardize.h"

enum Type { kFloat32 = 0, kBFloat16 = 1, kFloat64 = 2 };
enum Function { kGeluTanh = 0, kSilu = 1, kGelu = 2, kRelu = 3 };

// Raised with every change of this interface, here and in library.py.
NF_EXPORT int nf_interface() { return 5; }

// What this library was compiled for: setup.py compiles it once per set of instructions, library.py takes the best that
// the processor has.
NF_EXPORT const char* nf_instructions() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "default";
#endif
}

// The OpenMP entry point that torch uses, or null.
NF_EXPORT void nf_use_threads_of(void* gomp_parallel) { nf::parallel = reinterpret_cast<nf::Parallel>(gomp_parallel); }

NF_EXPORT void nf_activation(int function, int type, const void* x, void* y, int64_t count, int threads) {
  using namespace nf;
  auto of = [function](auto tanh, auto silu, auto erf, auto relu) {
    return function == kGeluTanh ? tanh : function == kSilu ? silu : function == kGelu ? erf : relu;
  };
  if (type == kFloat32) in_blocks<float>(of(gelu_tanh_f32, silu_f32, gelu_f32, relu_f32), x, y, count, threads);
  if (type == kBFloat16)
    in_blocks<bfloat16>(of(gelu_tanh_bf16, silu_bf16, gelu_bf16, relu_bf16), x, y, count, threads);
  if (type == kFloat64) in_blocks<double>(of(gelu_tanh_f64, silu_f64, gelu_f64, relu_f64), x, y, count, threads);
}

NF_EXPORT void nf_activation_backward(int function, int type, const void* grad, const void* x, void* out, int64_t count,
                                      int threads) {
  using namespace nf;
  auto of = [function](auto tanh, auto silu, auto erf) {
    return function == kGeluTanh ? tanh : function == kSilu ? silu : erf;
  };
  if (type == kFloat32)
    in_blocks<float>(of(gelu_tanh_f32_backward, silu_f32_backward, gelu_f32_backward), grad, x, out, count, threads);
  if (type == kBFloat16)
    in_blocks<bfloat16>(of(gelu_tanh_bf16_backward, silu_bf16_backward, gelu_bf16_backward), grad, x, out, count, threads);
  if (type == kFloat64)
    in_blocks<double>(of(gelu_tanh_f64_backward, silu_f64_backward, gelu_f64_backward), grad, x, out, count, threads);
}

namespace nf {

template <class T, class Out>
static void standardize_all(void (*rows_of)(const Weight<T>&, Out*, int64_t, int64_t), const Weight<T>& weight,
                            void* out, int threads) {
  in_rows(weight.rows, weight.columns, threads,
          [&](int64_t first, int64_t last) { rows_of(weight, static_cast<Out*>(out), first, last); });
}

template <class T, class Grad>
static double standardize_all_backward(void (*rows_of)(const Weight<T>&, const Grad*, T*, double*, int64_t, int64_t),
                                       const Weight<T>& weight, const void* grad, void* grad_weight, void* grad_gain,
                                       double* dots, int threads) {
  in_rows(weight.rows, weight.columns, threads, [&](int64_t first, int64_t last) {
    rows_of(weight, static_cast<const Grad*>(grad), static_cast<T*>(grad_weight), dots, first, last);
  });
  return gradient_of_factors(weight, dots, static_cast<T*>(grad_gain));
}

template <class T>
static Weight<T> weight_of(const void* value, const void* gain, double scale, double eps, int add_eps, int64_t rows,
                           int64_t columns, void* statistics) {
  T* mean = static_cast<T*>(statistics);
  return {static_cast<const T*>(value), static_cast<const T*>(gain), mean, mean + rows, mean + 2 * rows,
          scale, eps, add_eps != 0, rows, columns};
}

}  // namespace nf

// `type` is that of `out`; the weight is float64 with float64 and else float32. statistics: (3, rows), like the weight.
NF_EXPORT void nf_standardize(int type, const void* weight, const void* gain, double scale, double eps, int add_eps,
                              int64_t rows, int64_t columns, void* out, void* statistics, int threads) {
  using namespace nf;
  if (type == kFloat64) {
    auto of = weight_of<double>(weight, gain, scale, eps, add_eps, rows, columns, statistics);
    standardize_all(standardize_f64, of, out, threads);
  } else {
    auto of = weight_of<float>(weight, gain, scale, eps, add_eps, rows, columns, statistics);
    if (type == kFloat32) standardize_all(standardize_f32, of, out, threads);
    if (type == kBFloat16) standardize_all(standardize_bf16, of, out, threads);
  }
}

// The gradient of scale; those of weight and gain where their memory is given. dots: `rows` doubles to work with.
NF_EXPORT double nf_standardize_backward(int type, const void* grad, const void* weight, const void* gain, double scale,
                                         int64_t rows, int64_t columns, void* statistics, void* grad_weight,
                                         void* grad_gain, double* dots, int threads) {
  using namespace nf;
  if (type == kFloat64) {
    auto of = weight_of<double>(weight, gain, scale, 0, 0, rows, columns, statistics);
    return standardize_all_backward(standardize_f64_backward, of, grad, grad_weight, grad_gain, dots, threads);
  }
  auto of = weight_of<float>(weight, gain, scale, 0, 0, rows, columns, statistics);
  if (type == kFloat32)
    return standardize_all_backward(standardize_f32_backward, of, grad, grad_weight, grad_gain, dots, threads);
  return standardize_all_backward(standardize_bf16_backward, of, grad, grad_weight, grad_gain, dots, threads);
}

// Maps (images, channels, places); `last`: channels last in memory. Sums over places of x * y, or of x if y is null:
// (images, channels), float32, or float64 with it.
NF_EXPORT void nf_sum_places(int type, int64_t images, int64_t channels, int64_t places, int last, const void* x,
                             const void* y, void* sums, int threads) {
  const nf::Maps maps{images, channels, places, last != 0};
  if (type == kFloat32) nf::sum_places<float>(maps, x, y, sums, threads);
  if (type == kBFloat16) nf::sum_places<nf::bfloat16>(maps, x, y, sums, threads);
  if (type == kFloat64) nf::sum_places<double>(maps, x, y, sums, threads);
}

// out = plus + gate * x; gate and plus are like the sums above.
NF_EXPORT void nf_gated(int type, int64_t images, int64_t channels, int64_t places, int last, const void* x,
                        const void* gate, const void* plus, void* out, int threads) {
  const nf::Maps maps{images, channels, places, last != 0};
  if (type == kFloat32) nf::gated<float>(maps, x, gate, plus, out, threads);
  if (type == kBFloat16) nf::gated<nf::bfloat16>(maps, x, gate, plus, out, threads);
  if (type == kFloat64) nf::gated<double>(maps, x, gate, plus, out, threads);
}

namespace nf {

template <class T, bool fine>
static void merged_by(int function, const Maps& maps, const void* shortcut, const void* branch, const void* gate,
                      void* out, void* next, int threads) {
  if (function == kGeluTanh) merged<Sigmoidal<TanhGelu>, T>(maps, shortcut, branch, gate, out, next, threads);
  if (function == kSilu) merged<Sigmoidal<Silu>, T>(maps, shortcut, branch, gate, out, next, threads);
  if (function == kGelu) merged<Gelu<fine>, T>(maps, shortcut, branch, gate, out, next, threads);
  if (function == kRelu) merged<Relu, T>(maps, shortcut, branch, gate, out, next, threads);
}

}  // namespace nf

// out = shortcut + gate * branch, next = function(out); gate is like the sums above, or null for 1. Not float64.
NF_EXPORT void nf_merged(int function, int type, int64_t images, int64_t channels, int64_t places, int last,
                         const void* shortcut, const void* branch, const void* gate, void* out, void* next,
                         int threads) {
  const nf::Maps maps{images, channels, places, last != 0};
  if (type == kFloat32) nf::merged_by<float, true>(function, maps, shortcut, branch, gate, out, next, threads);
  if (type == kBFloat16) nf::merged_by<nf::bfloat16, false>(function, maps, shortcut, branch, gate, out, next, threads);
}

// A linear layer of float32 inputs and outputs, with a weight and a bias (or null) of `type`, not float64.
NF_EXPORT void nf_linear(int type, int64_t images, int64_t inputs, int64_t outputs, int function, double factor,
                         const void* x, const void* weight, const void* bias, void* out, int threads) {
  using namespace nf;
  const Linear layer{images, inputs, outputs, function, static_cast<float>(factor)};
  const auto* from = static_cast<const float*>(x);
  auto* to = static_cast<float*>(out);
  if (type == kFloat32)
    linear(layer, from, static_cast<const float*>(weight), static_cast<const float*>(bias), to, threads);
  if (type == kBFloat16)
    linear(layer, from, static_cast<const bfloat16*>(weight), static_cast<const bfloat16*>(bias), to, threads);
}

enum Outcome { kDone = 0, kNonfinite = 1, kNoMemory = 2 };

// With settings.check, nothing is changed unless every gradient norm is finite.
NF_EXPORT int nf_optimizer_step(void* parameters, int64_t count, const void* settings, int threads) {
  nf::Step step(static_cast<nf::Parameter*>(parameters), count, *static_cast<const nf::Settings*>(settings), threads);
  if (!step.ready()) return kNoMemory;
  const bool finite = step.norms();
  if (!finite && static_cast<const nf::Settings*>(settings)->check) return kNonfinite;
  step.update();
  return kDone;
}
