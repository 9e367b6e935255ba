// libcudnn, versions 8 and 9: what Chainer and lib/gpu/cudnn.py use of it for these networks. Packed NCHW
// tensors, computed in float32; what cuDNN would refuse is refused.
#include "device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

enum Status { OK = 0, BAD_PARAM = 3 };
enum Type { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2 };
enum { NCHW = 0, CROSS_CORRELATION = 1, FMA_MATH = 3, RELU = 1, BN_PER_ACTIVATION = 0, SOFTMAX_LOG = 2 };

struct Handle { void *stream; };
struct Tensor {
  Type type;
  long n, c, h, w;
  bool packed;
  long plane() const { return h * w; }
  long size() const { return n * c * h * w; }
};
struct Filter { Type type; long k, c, h, w; long size() const { return k * c * h * w; } };
struct Convolution {
  int pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w;
  Type compute;
  int math, groups;
};
struct Activation { int mode; };
struct Performance {  // of an algorithm: one kind for all three directions
  int algorithm, status;
  float time;
  size_t memory;
  int determinism, math, reserved[3];
};

static float get(const void *data, long i, Type type) {
  return type == FLOAT16 ? (float)((const _Float16 *)data)[i] : ((const float *)data)[i];
}
static void put(void *data, long i, Type type, float value) {
  if (type == FLOAT16) ((_Float16 *)data)[i] = value; else ((float *)data)[i] = value;
}
static std::vector<float> load(const void *data, long size, Type type) {
  std::vector<float> values(size);
  for (long i = 0; i < size; i++) values[i] = get(data, i, type);
  return values;
}
static void store(void *data, const std::vector<float> &values, Type type) {
  for (size_t i = 0; i < values.size(); i++) put(data, i, type, values[i]);
}

// What a convolution multiplies: in TF32, unless only fused multiply-adds were asked for.
static std::vector<float> factors(const void *data, long size, Type type, const Convolution &c) {
  auto values = load(data, size, type);
  if (type == FLOAT32 && c.math != FMA_MATH)
    for (float &value : values) value = as_tf32(value);
  return values;
}

template <class... P> static bool all_on_device(P... pointers) { return (on_device(pointers) && ...); }
static bool plain(const Tensor *x) { return x->packed && x->type != FLOAT64; }
// y = alpha * result + beta * y is known for 1 and 0 alone.
static bool unscaled(const void *alpha, const void *beta) {
  return *(float *)alpha == 1 && *(float *)beta == 0;
}

static long outputs(long size, int pad, int stride, int dilation, long kernel) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

static bool fits(const Tensor *x, const Filter *w, const Convolution *c, const Tensor *y) {
  return plain(x) && plain(y) && x->type == w->type && y->type == w->type && c->compute == FLOAT32 &&
         c->groups == 1 && x->c == w->c && y->n == x->n && y->c == w->k &&
         y->h == outputs(x->h, c->pad_h, c->stride_h, c->dilation_h, w->h) &&
         y->w == outputs(x->w, c->pad_w, c->stride_w, c->dilation_w, w->w);
}

// Calls visit(index in x, index in w, index in y) for every product of a convolution.
template <class Visit>
static void convolve(const Tensor &x, const Filter &w, const Convolution &c, const Tensor &y, Visit visit) {
  for (long n = 0; n < x.n; n++)
    for (long k = 0; k < w.k; k++)
      for (long q = 0; q < w.c; q++)
        for (long i = 0; i < w.h; i++)
          for (long j = 0; j < w.w; j++) {
            long shift_h = i * c.dilation_h - c.pad_h, shift_w = j * c.dilation_w - c.pad_w;
            // Columns whose pixel is not in the padding.
            long first = shift_w < 0 ? (-shift_w + c.stride_w - 1) / c.stride_w : 0;
            long end = std::min(y.w, (x.w - shift_w + c.stride_w - 1) / c.stride_w);
            for (long row = 0; row < y.h; row++) {
              long from = row * c.stride_h + shift_h;
              if (from < 0 || from >= x.h) continue;
              long at_x = ((n * x.c + q) * x.h + from) * x.w + shift_w,
                   at_y = ((n * y.c + k) * y.h + row) * y.w;
              for (long column = first; column < end; column++)
                visit(at_x + column * c.stride_w, ((k * w.c + q) * w.h + i) * w.w + j, at_y + column);
            }
          }
}

// Calls visit(index) for every element of a channel.
template <class Visit> static void channel(const Tensor &x, long c, Visit visit) {
  for (long n = 0; n < x.n; n++)
    for (long i = 0; i < x.plane(); i++) visit((n * x.c + c) * x.plane() + i);
}

static const size_t SCRATCH = 4096;  // bytes that every algorithm asks for

static Status find(bool fits, int *found, Performance *performance, const Convolution *convolution) {
  if (!fits) return BAD_PARAM;
  *performance = Performance{};
  performance->memory = SCRATCH;
  performance->math = convolution->math;
  *found = 1;
  return OK;
}

extern "C" {

size_t cudnnGetVersion() { return cudnn_9 ? 92800 : 8907; }
const char *cudnnGetErrorString(Status status) {
  return status ? "CUDNN_STATUS_BAD_PARAM" : "CUDNN_STATUS_SUCCESS";
}
Status cudnnCreate(Handle **handle) { *handle = new Handle{}; return OK; }
Status cudnnDestroy(Handle *handle) { delete handle; return OK; }
Status cudnnSetStream(Handle *handle, void *stream) { handle->stream = stream; return OK; }
Status cudnnGetStream(Handle *handle, void **stream) { *stream = handle->stream; return OK; }

Status cudnnCreateTensorDescriptor(Tensor **tensor) { *tensor = new Tensor{}; return OK; }
Status cudnnDestroyTensorDescriptor(Tensor *tensor) { delete tensor; return OK; }
Status cudnnSetTensor4dDescriptor(Tensor *tensor, int format, Type type, int n, int c, int h, int w) {
  if (format != NCHW || n < 1 || c < 1 || h < 1 || w < 1) return BAD_PARAM;
  *tensor = {type, n, c, h, w, true};
  return OK;
}
Status cudnnSetTensorNdDescriptor(Tensor *tensor, Type type, int dimensions, const int *d,
                                  const int *strides) {
  if (dimensions != 4) return BAD_PARAM;
  Status status = cudnnSetTensor4dDescriptor(tensor, NCHW, type, d[0], d[1], d[2], d[3]);
  tensor->packed = strides[3] == 1 && strides[2] == d[3] && strides[1] == d[2] * d[3] &&
                   strides[0] == d[1] * d[2] * d[3];
  return status;
}
Status cudnnGetTensor4dDescriptor(Tensor *tensor, Type *type, int *n, int *c, int *h, int *w, int *stride_n,
                                  int *stride_c, int *stride_h, int *stride_w) {
  *type = tensor->type;
  *n = tensor->n, *c = tensor->c, *h = tensor->h, *w = tensor->w;
  *stride_n = tensor->c * tensor->plane(), *stride_c = tensor->plane(), *stride_h = tensor->w, *stride_w = 1;
  return OK;
}
Status cudnnCreateFilterDescriptor(Filter **filter) { *filter = new Filter{}; return OK; }
Status cudnnDestroyFilterDescriptor(Filter *filter) { delete filter; return OK; }
Status cudnnSetFilter4dDescriptor(Filter *filter, Type type, int format, int k, int c, int h, int w) {
  if (format != NCHW) return BAD_PARAM;
  *filter = {type, k, c, h, w};
  return OK;
}
Status cudnnCreateConvolutionDescriptor(Convolution **c) { *c = new Convolution{}; return OK; }
Status cudnnDestroyConvolutionDescriptor(Convolution *c) { delete c; return OK; }
Status cudnnSetConvolution2dDescriptor(Convolution *c, int pad_h, int pad_w, int stride_h, int stride_w,
                                       int dilation_h, int dilation_w, int mode, Type compute) {
  if (mode != CROSS_CORRELATION) return BAD_PARAM;
  *c = {pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, compute, 0, 1};
  return OK;
}
Status cudnnSetConvolutionMathType(Convolution *c, int math) { c->math = math; return OK; }
Status cudnnSetConvolutionGroupCount(Convolution *c, int groups) { c->groups = groups; return OK; }

Status cudnnFindConvolutionForwardAlgorithmEx(Handle *, Tensor *x, const void *, Filter *w, const void *,
                                              Convolution *c, Tensor *y, void *, int, int *found,
                                              Performance *performance, void *workspace, size_t) {
  return find(fits(x, w, c, y) && on_device(workspace), found, performance, c);
}
Status cudnnFindConvolutionBackwardDataAlgorithmEx(Handle *, Filter *w, const void *, Tensor *y, const void *,
                                                   Convolution *c, Tensor *x, void *, int, int *found,
                                                   Performance *performance, void *workspace, size_t) {
  return find(fits(x, w, c, y) && on_device(workspace), found, performance, c);
}
Status cudnnFindConvolutionBackwardFilterAlgorithmEx(Handle *, Tensor *x, const void *, Tensor *y,
                                                     const void *, Convolution *c, Filter *w, void *, int,
                                                     int *found, Performance *performance, void *workspace,
                                                     size_t) {
  return find(fits(x, w, c, y) && on_device(workspace), found, performance, c);
}
Status cudnnGetConvolutionForwardAlgorithm_v7(Handle *, Tensor *x, Filter *w, Convolution *c, Tensor *y, int,
                                              int *found, Performance *performance) {
  return find(fits(x, w, c, y), found, performance, c);
}
Status cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle *, Filter *w, Tensor *y, Convolution *c, Tensor *x,
                                                   int, int *found, Performance *performance) {
  return find(fits(x, w, c, y), found, performance, c);
}
Status cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle *, Tensor *x, Tensor *y, Convolution *c,
                                                     Filter *w, int, int *found, Performance *performance) {
  return find(fits(x, w, c, y), found, performance, c);
}
Status cudnnConvolutionForward(Handle *handle, const void *alpha, Tensor *x, const void *x_data, Filter *w,
                               const void *w_data, Convolution *c, int, void *workspace, size_t size,
                               const void *beta, Tensor *y, void *y_data) {
  if (!fits(x, w, c, y) || !unscaled(alpha, beta) || size < SCRATCH ||
      !all_on_device(x_data, w_data, y_data, workspace)) return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x, w = *w, c = *c, y = *y] {
    auto in = factors(x_data, x.size(), x.type, c), weights = factors(w_data, w.size(), w.type, c);
    std::vector<float> out(y.size());
    convolve(x, w, c, y, [&](long i, long j, long k) { out[k] += in[i] * weights[j]; });
    store(y_data, out, y.type);
  });
  return OK;
}
Status cudnnConvolutionBackwardData(Handle *handle, const void *alpha, Filter *w, const void *w_data,
                                    Tensor *y, const void *y_data, Convolution *c, int, void *workspace,
                                    size_t size, const void *beta, Tensor *x, void *x_data) {
  if (!fits(x, w, c, y) || !unscaled(alpha, beta) || size < SCRATCH ||
      !all_on_device(x_data, w_data, y_data, workspace)) return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x, w = *w, c = *c, y = *y] {
    auto out = factors(y_data, y.size(), y.type, c), weights = factors(w_data, w.size(), w.type, c);
    std::vector<float> in(x.size());
    convolve(x, w, c, y, [&](long i, long j, long k) { in[i] += out[k] * weights[j]; });
    store(x_data, in, x.type);
  });
  return OK;
}
Status cudnnConvolutionBackwardFilter(Handle *handle, const void *alpha, Tensor *x, const void *x_data,
                                      Tensor *y, const void *y_data, Convolution *c, int, void *workspace,
                                      size_t size, const void *beta, Filter *w, void *w_data) {
  if (!fits(x, w, c, y) || !unscaled(alpha, beta) || size < SCRATCH ||
      !all_on_device(x_data, w_data, y_data, workspace)) return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x, w = *w, c = *c, y = *y] {
    auto in = factors(x_data, x.size(), x.type, c), out = factors(y_data, y.size(), y.type, c);
    std::vector<float> weights(w.size());
    convolve(x, w, c, y, [&](long i, long j, long k) { weights[j] += in[i] * out[k]; });
    store(w_data, weights, w.type);
  });
  return OK;
}

Status cudnnCreateActivationDescriptor(Activation **activation) { *activation = new Activation{}; return OK; }
Status cudnnDestroyActivationDescriptor(Activation *activation) { delete activation; return OK; }
Status cudnnSetActivationDescriptor(Activation *activation, int mode, int, double) {
  activation->mode = mode;
  return OK;
}
Status cudnnActivationForward(Handle *handle, Activation *activation, const void *alpha, Tensor *x,
                              const void *x_data, const void *beta, Tensor *y, void *y_data) {
  if (activation->mode != RELU || !plain(x) || !plain(y) || !unscaled(alpha, beta)) return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x] {
    for (long i = 0; i < x.size(); i++) {
      float value = get(x_data, i, x.type);
      put(y_data, i, x.type, value > 0 || std::isnan(value) ? value : 0);
    }
  });
  return OK;
}
Status cudnnActivationBackward(Handle *handle, Activation *activation, const void *alpha, Tensor *y,
                               const void *y_data, Tensor *dy, const void *dy_data, Tensor *, const void *,
                               const void *beta, Tensor *, void *dx_data) {
  if (activation->mode != RELU || !plain(y) || !plain(dy) || !unscaled(alpha, beta)) return BAD_PARAM;
  enqueue(handle->stream, [=, y = *y] {
    for (long i = 0; i < y.size(); i++)
      put(dx_data, i, y.type, get(y_data, i, y.type) > 0 ? get(dy_data, i, y.type) : 0);
  });
  return OK;
}
Status cudnnSoftmaxForward(Handle *handle, int algorithm, int, const void *alpha, Tensor *x,
                           const void *x_data, const void *beta, Tensor *, void *y_data) {
  if (x->plane() != 1 || !plain(x) || !unscaled(alpha, beta)) return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x] {
    for (long n = 0; n < x.n; n++) {
      float largest = -INFINITY, sum = 0;
      for (long c = 0; c < x.c; c++) largest = std::fmax(largest, get(x_data, n * x.c + c, x.type));
      for (long c = 0; c < x.c; c++) sum += std::exp(get(x_data, n * x.c + c, x.type) - largest);
      for (long c = 0; c < x.c; c++) {
        float value = get(x_data, n * x.c + c, x.type) - largest - std::log(sum);
        put(y_data, n * x.c + c, x.type, algorithm == SOFTMAX_LOG ? value : std::exp(value));
      }
    }
  });
  return OK;
}

Status cudnnDeriveBNTensorDescriptor(Tensor *derived, Tensor *x, int mode) {
  if (mode == BN_PER_ACTIVATION) return BAD_PARAM;
  *derived = {FLOAT32, 1, x->c, 1, 1, true};
  return OK;
}
Status cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(Handle *, int, int, Tensor *, Tensor *,
                                                                Tensor *, Tensor *, Activation *,
                                                                size_t *size) {
  *size = 0;
  return OK;
}
Status cudnnGetBatchNormalizationBackwardExWorkspaceSize(Handle *, int, int, Tensor *, Tensor *, Tensor *,
                                                         Tensor *, Tensor *, Tensor *, Activation *,
                                                         size_t *size) {
  *size = 0;
  return OK;
}
Status cudnnGetBatchNormalizationTrainingExReserveSpaceSize(Handle *, int, int, Activation *, Tensor *,
                                                            size_t *size) {
  *size = 0;
  return OK;
}
Status cudnnBatchNormalizationForwardTrainingEx(Handle *handle, int, int, const void *alpha, const void *beta,
                                                Tensor *x, const void *x_data, Tensor *, const void *,
                                                Tensor *, void *y_data, Tensor *, const float *gamma,
                                                const float *shift, double factor, float *running_mean,
                                                float *running_variance, double eps, float *saved_mean,
                                                float *saved_inverse, Activation *, void *, size_t, void *,
                                                size_t) {
  if (!plain(x) || !unscaled(alpha, beta) || factor < 0 || factor > 1 ||
      !all_on_device(x_data, y_data, gamma, shift, saved_mean, saved_inverse) ||
      (running_mean && !all_on_device(running_mean, running_variance)))
    return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x] {
    double m = x.n * x.plane();
    for (long c = 0; c < x.c; c++) {
      double mean = 0, squares = 0;
      channel(x, c, [&](long i) { mean += get(x_data, i, x.type) / m; });
      channel(x, c, [&](long i) {
        double deviation = get(x_data, i, x.type) - mean;
        squares += deviation * deviation;
      });
      double inverse = 1 / std::sqrt(squares / m + eps), variance = squares / (m - 1);
      saved_mean[c] = mean;
      saved_inverse[c] = inverse;
      if (running_mean) {  // of which a factor of 1 reads nothing
        running_mean[c] = factor * mean + (factor < 1 ? (1 - factor) * running_mean[c] : 0);
        running_variance[c] = factor * variance + (factor < 1 ? (1 - factor) * running_variance[c] : 0);
      }
      channel(x, c, [&](long i) {
        put(y_data, i, x.type, (get(x_data, i, x.type) - mean) * inverse * gamma[c] + shift[c]);
      });
    }
  });
  return OK;
}
Status cudnnBatchNormalizationForwardTraining(Handle *handle, int mode, const void *alpha, const void *beta,
                                              Tensor *x, const void *x_data, Tensor *y, void *y_data,
                                              Tensor *derived, const float *gamma, const float *shift,
                                              double factor, float *running_mean, float *running_variance,
                                              double eps, float *saved_mean, float *saved_inverse) {
  return cudnnBatchNormalizationForwardTrainingEx(
      handle, mode, 0, alpha, beta, x, x_data, nullptr, nullptr, y, y_data, derived, gamma, shift, factor,
      running_mean, running_variance, eps, saved_mean, saved_inverse, nullptr, nullptr, 0, nullptr, 0);
}
Status cudnnBatchNormalizationForwardInference(Handle *handle, int, const void *alpha, const void *beta,
                                               Tensor *x, const void *x_data, Tensor *, void *y_data,
                                               Tensor *, const float *gamma, const float *shift,
                                               const float *mean, const float *variance, double eps) {
  if (!plain(x) || !unscaled(alpha, beta) || !all_on_device(x_data, y_data, gamma, shift, mean, variance))
    return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x] {
    for (long c = 0; c < x.c; c++) {
      float inverse = 1 / std::sqrt(variance[c] + eps);
      channel(x, c, [&](long i) {
        put(y_data, i, x.type, (get(x_data, i, x.type) - mean[c]) * inverse * gamma[c] + shift[c]);
      });
    }
  });
  return OK;
}
Status cudnnBatchNormalizationBackwardEx(Handle *handle, int, int, const void *alpha, const void *beta,
                                         const void *alpha_of_parameters, const void *beta_of_parameters,
                                         Tensor *x, const void *x_data, Tensor *, const void *, Tensor *,
                                         const void *dy_data, Tensor *, void *, Tensor *, void *dx_data,
                                         Tensor *, const float *gamma, const void *, float *dgamma,
                                         float *dshift, double, const float *saved_mean,
                                         const float *saved_inverse, Activation *, void *, size_t, void *,
                                         size_t) {
  if (!plain(x) || !unscaled(alpha, beta) || !unscaled(alpha_of_parameters, beta_of_parameters) ||
      !all_on_device(x_data, dy_data, dx_data, gamma, dgamma, dshift, saved_mean, saved_inverse))
    return BAD_PARAM;
  enqueue(handle->stream, [=, x = *x] {
    double m = x.n * x.plane();
    for (long c = 0; c < x.c; c++) {
      auto normalized = [&](long i) { return (get(x_data, i, x.type) - saved_mean[c]) * saved_inverse[c]; };
      double sum = 0, product = 0;
      channel(x, c, [&](long i) {
        sum += get(dy_data, i, x.type);
        product += get(dy_data, i, x.type) * normalized(i);
      });
      dshift[c] = sum;
      dgamma[c] = product;
      channel(x, c, [&](long i) {
        put(dx_data, i, x.type, gamma[c] * saved_inverse[c] *
            (get(dy_data, i, x.type) - (sum + normalized(i) * product) / m));
      });
    }
  });
  return OK;
}
Status cudnnBatchNormalizationBackward(Handle *handle, int mode, const void *alpha, const void *beta,
                                       const void *alpha_of_parameters, const void *beta_of_parameters,
                                       Tensor *x, const void *x_data, Tensor *dy, const void *dy_data,
                                       Tensor *dx, void *dx_data, Tensor *derived, const float *gamma,
                                       float *dgamma, float *dshift, double eps, const float *saved_mean,
                                       const float *saved_inverse) {
  return cudnnBatchNormalizationBackwardEx(
      handle, mode, 0, alpha, beta, alpha_of_parameters, beta_of_parameters, x, x_data, nullptr, nullptr, dy,
      dy_data, nullptr, nullptr, dx, dx_data, derived, gamma, nullptr, dgamma, dshift, eps, saved_mean,
      saved_inverse, nullptr, nullptr, 0, nullptr, 0);
}

}  // extern "C"
