// Adaptive gradient clipping, weight decay, momentum and the weights' moving average in one pass over memory.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>

#include "parallel.h"

namespace nf {

constexpr int64_t kBlock = 32768;     // elements per block
constexpr int64_t kLongRow = 65536;   // a row up to here is one block: its weight and gradient stay in the cache
constexpr int64_t kPart = 2048;       // elements whose squares are summed in float32; the sums' sum is a double

// A parameter as rows of one unit each; mirrored in optimizer.py. Every field has eight bytes.
struct Parameter {
  float *value, *grad, *buffer, *average;  // grad null: only averaged; buffer, average may be null
  int64_t rows, columns;
  double lr, weight_decay, clipping;  // clipping 0: none
  int64_t first;                      // the momentum buffer's first step: it becomes the gradient
  int64_t clipped;                    // out: units clipped
  uint64_t ratio;                     // out: largest |G| / max(|W|, eps), a double's bits
  int64_t nonfinite;                  // out: a unit's gradient norm is not finite
  int64_t block, unit;                // in blocks and units of all parameters, where it begins

  bool split() const { return columns > kLongRow; }
  int64_t step() const { return columns < kBlock ? kBlock / (columns > 0 ? columns : 1) : 1; }  // rows per block
  int64_t segments() const { return (columns + kBlock - 1) / kBlock; }                          // blocks per split row
  int64_t blocks() const { return columns == 0 ? 0 : split() ? rows * segments() : (rows + step() - 1) / step(); }
};

struct Settings {
  double momentum, dampening, eps, ema_weight;  // ema_weight: 1 - decay
  int64_t nesterov, write_grads, check;
};

struct Squares {
  double grad, value;
};

NF_INLINE double squares_of(const float* x, int64_t count) {
  double total = 0;
  for (int64_t at = 0; at < count; at += kPart) {
    const int64_t end = at + kPart < count ? at + kPart : count;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = at; i < end; ++i) sum += x[i] * x[i];
    total += sum;
  }
  return total;
}

NF_INLINE Squares squares_of(const float* grad, const float* value, int64_t count) {
  Squares total{0, 0};
  for (int64_t at = 0; at < count; at += kPart) {
    const int64_t end = at + kPart < count ? at + kPart : count;
    float grads = 0, values = 0;
#pragma omp simd reduction(+ : grads, values)
    for (int64_t i = at; i < end; ++i) {
      grads += grad[i] * grad[i];
      values += value[i] * value[i];
    }
    total.grad += grads;
    total.value += values;
  }
  return total;
}

enum Rule { kStill, kPlain, kMomentum, kNesterov };

struct Numbers {
  float coefficient, weight_decay, momentum, undamped, lr, ema;
};

// torch.optim.SGD's operations in its order, and lerp's two forms as in torch.
template <Rule rule, bool averaged>
NF_INLINE void update(float* __restrict value, const float* __restrict grad, float* __restrict buffer,
                      float* __restrict average, const Numbers by, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float w = value[i];
    if (rule != kStill) {
      float step = grad[i] * by.coefficient + by.weight_decay * w;
      if (rule != kPlain) {
        const float moving = by.momentum * buffer[i] + by.undamped * step;
        buffer[i] = moving;
        step = rule == kNesterov ? step + by.momentum * moving : moving;
      }
      value[i] = w = w - by.lr * step;
    }
    if (averaged) {
      const float before = average[i], move = w - before;
      average[i] = by.ema < 0.5f ? before + by.ema * move : w - move * (1.0f - by.ema);
    }
  }
}

template <bool averaged>
NF_INLINE void update_by(Rule rule, float* value, float* grad, float* buffer, float* average, const Numbers& by,
                         int64_t count) {
  if (rule == kNesterov) update<kNesterov, averaged>(value, grad, buffer, average, by, count);
  if (rule == kMomentum) update<kMomentum, averaged>(value, grad, buffer, average, by, count);
  if (rule == kPlain) update<kPlain, averaged>(value, grad, buffer, average, by, count);
  if (rule == kStill && averaged) update<kStill, averaged>(value, grad, buffer, average, by, count);
}

// functional.clip_coefficient of one unit, counted.
NF_INLINE float clip(const Parameter& parameter, const Squares& squares, double eps, int64_t* clipped, double* ratio) {
  const float norm = static_cast<float>(std::sqrt(squares.grad)), least = static_cast<float>(eps);
  float bound = static_cast<float>(std::sqrt(squares.value));
  bound = bound < least ? least : bound;
  const double its = norm / bound;
  if (!(its <= *ratio)) *ratio = its;
  if (parameter.clipping == 0) return 1.0f;
  if (!std::isfinite(norm)) return std::numeric_limits<float>::quiet_NaN();
  const float coefficient = bound * static_cast<float>(parameter.clipping) / norm;
  *clipped += coefficient < 1.0f;
  return coefficient > 1.0f ? 1.0f : coefficient;
}

// One piece of a row: all of it, or a segment.
NF_INLINE void step_piece(const Parameter& parameter, const Settings& settings, int64_t at, int64_t count, float c) {
  float *value = parameter.value + at, *grad = parameter.grad ? parameter.grad + at : nullptr;
  float *buffer = parameter.buffer ? parameter.buffer + at : nullptr;
  float* average = parameter.average ? parameter.average + at : nullptr;
  Rule rule = settings.nesterov ? kNesterov : kMomentum;
  if (!buffer) rule = kPlain;
  if (!grad) rule = kStill;
  if (grad && settings.write_grads && c != 1.0f) {
    for (int64_t i = 0; i < count; ++i) grad[i] *= c;
    c = 1.0f;
  }
  if (grad && buffer && parameter.first) std::memset(buffer, 0, count * sizeof(float));
  const double undamped = parameter.first ? 1.0 : 1.0 - settings.dampening;
  const Numbers by{c,
                   static_cast<float>(parameter.weight_decay),
                   static_cast<float>(settings.momentum),
                   static_cast<float>(undamped),
                   static_cast<float>(parameter.lr),
                   static_cast<float>(settings.ema_weight)};
  if (average)
    update_by<true>(rule, value, grad, buffer, average, by, count);
  else
    update_by<false>(rule, value, grad, buffer, average, by, count);
}

// Rows of a parameter whose norms, where they are known, lie in `units`.
static void step_rows(Parameter& parameter, const Settings& settings, const Squares* units, int64_t first,
                                int64_t last, int64_t* clipped, double* ratio) {
  const int64_t count = parameter.columns;
  for (int64_t row = first; row < last; ++row) {
    const float* value = parameter.value + row * count;
    const float* grad = parameter.grad + row * count;
    float c = 1.0f;
    if (parameter.grad) {
      const Squares squares =
          units ? Squares{units[row].grad, squares_of(value, count)} : squares_of(grad, value, count);
      c = clip(parameter, squares, settings.eps, clipped, ratio);
    }
    step_piece(parameter, settings, row * count, count, c);
  }
}

static void step_segment(Parameter& parameter, const Settings& settings, const Squares& unit, int64_t at,
                                   int64_t count, int64_t* clipped, double* ratio) {
  const float c = parameter.grad ? clip(parameter, unit, settings.eps, clipped, ratio) : 1.0f;
  step_piece(parameter, settings, at, count, c);
}

static void norms_of_rows(Parameter& parameter, Squares* units, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    units[row].grad = squares_of(parameter.grad + row * parameter.columns, parameter.columns);
    if (!std::isfinite(units[row].grad)) __atomic_store_n(&parameter.nonfinite, 1, __ATOMIC_RELAXED);
  }
}

static void norms_of_segment(const Parameter& parameter, Squares* part, int64_t at, int64_t count) {
  *part = squares_of(parameter.grad + at, parameter.value + at, count);
}

class Step {
 public:
  Step(Parameter* parameters, int64_t count, const Settings& settings, int threads)
      : parameters_(parameters), count_(count), settings_(settings), threads_(threads) {
    for (int64_t i = 0; i < count; ++i) {
      parameters[i].block = blocks_;
      parameters[i].unit = units_;
      blocks_ += parameters[i].blocks();
      units_ += parameters[i].rows;
      split_ |= parameters[i].split();
    }
    const bool known = settings.check || split_;
    if (known) squares_ = static_cast<Squares*>(std::malloc((units_ + blocks_ + 1) * sizeof(Squares)));
    ready_ = !known || squares_;
  }
  ~Step() { std::free(squares_); }

  bool ready() const { return ready_; }

  // Norms of the gradients, or only of those of split rows; whether all are finite.
  bool norms() {
    if (!squares_) return true;
    for_each(blocks_, threads_, [this](int64_t block) { norms_of(block); });
    bool finite = true;
    for (int64_t i = 0; i < count_; ++i) {
      Parameter& parameter = parameters_[i];
      if (parameter.split() && parameter.grad) join(parameter);
      finite &= !parameter.nonfinite;
    }
    return finite;
  }

  void update() {
    for_each(blocks_, threads_, [this](int64_t block) { update(block); });
  }

 private:
  Parameter& owner(int64_t block) const {  // the last parameter that begins at or before the block
    int64_t low = 0, high = count_;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (parameters_[middle].block <= block ? low : high) = middle;
    }
    return parameters_[low];
  }

  // Where a segment begins in its parameter, how long it is, and its row.
  static void segment(const Parameter& parameter, int64_t number, int64_t* at, int64_t* count, int64_t* row) {
    *row = number / parameter.segments();
    const int64_t inside = number % parameter.segments() * kBlock;
    *at = *row * parameter.columns + inside;
    *count = parameter.columns - inside < kBlock ? parameter.columns - inside : kBlock;
  }

  void norms_of(int64_t block) {
    Parameter& parameter = owner(block);
    const int64_t number = block - parameter.block;
    if (!parameter.grad) return;
    if (parameter.split()) {
      int64_t at, count, row;
      segment(parameter, number, &at, &count, &row);
      norms_of_segment(parameter, squares_ + units_ + block, at, count);
    } else if (settings_.check) {
      norms_of_rows(parameter, squares_ + parameter.unit, number * parameter.step(), end(parameter, number));
    }
  }

  static int64_t end(const Parameter& parameter, int64_t number) {
    const int64_t last = (number + 1) * parameter.step();
    return last < parameter.rows ? last : parameter.rows;
  }

  void join(Parameter& parameter) {  // in the order of the segments, whoever summed them
    for (int64_t row = 0; row < parameter.rows; ++row) {
      Squares& unit = squares_[parameter.unit + row] = Squares{0, 0};
      const Squares* parts = squares_ + units_ + parameter.block + row * parameter.segments();
      for (int64_t i = 0; i < parameter.segments(); ++i) {
        unit.grad += parts[i].grad;
        unit.value += parts[i].value;
      }
      if (!std::isfinite(unit.grad)) parameter.nonfinite = 1;
    }
  }

  void update(int64_t block) {
    Parameter& parameter = owner(block);
    const int64_t number = block - parameter.block;
    int64_t clipped = 0;
    double ratio = 0;
    if (parameter.split()) {
      int64_t at, count, row;
      segment(parameter, number, &at, &count, &row);
      step_segment(parameter, settings_, squares_[parameter.unit + row], at, count, &clipped, &ratio);
      if (number % parameter.segments()) clipped = 0;  // a unit counts once
    } else {
      const Squares* units = settings_.check ? squares_ + parameter.unit : nullptr;
      step_rows(parameter, settings_, units, number * parameter.step(), end(parameter, number), &clipped, &ratio);
    }
    __atomic_fetch_add(&parameter.clipped, clipped, __ATOMIC_RELAXED);
    // bits of numbers of at least 0 are in their order, NaN above all
    const uint64_t bits = bits_as<uint64_t>(ratio) & ~(uint64_t(1) << 63);
    uint64_t held = __atomic_load_n(&parameter.ratio, __ATOMIC_RELAXED);
    while (held < bits && !__atomic_compare_exchange_n(&parameter.ratio, &held, bits, true, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
  }

  Parameter* parameters_;
  int64_t count_, blocks_ = 0, units_ = 0;
  const Settings settings_;
  int threads_;
  bool split_ = false, ready_ = false;
  Squares* squares_ = nullptr;
};

}  // namespace nf
