// libcublas: the products that CuPy asks for. Column-major, added up in float32 as cuBLAS does for float16.
#include "device.h"

#include <algorithm>
#include <vector>

enum Type { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2 };
enum { OK = 0, COMPUTE_16F = 64, COMPUTE_16F_PEDANTIC = 65, COMPUTE_32F_FAST_TF32 = 77, TF32_MATH = 3 };
struct Handle { void *stream; int pointer_mode, math_mode; };
struct Matrix { void *data; Type type; long stride, batch_stride; bool transposed; };
struct Product { int m, n, k, count; float alpha, beta; Matrix a, b, c; bool tf32; };

static float get(const void *data, long i, Type type) {
  switch (type) {
    case FLOAT32: return ((const float *)data)[i];
    case FLOAT64: return ((const double *)data)[i];
    case FLOAT16: return ((const _Float16 *)data)[i];
  }
  give_up("cuBLAS type %d", type);
}

static void put(void *data, long i, Type type, float value) {
  switch (type) {
    case FLOAT32: ((float *)data)[i] = value; return;
    case FLOAT64: ((double *)data)[i] = value; return;
    case FLOAT16: ((_Float16 *)data)[i] = value; return;
  }
}

static float rounded(float value, bool tf32) { return tf32 ? as_tf32(value) : value; }

static float element(const Matrix &matrix, long batch, long row, long column) {
  if (matrix.transposed) std::swap(row, column);
  return get(matrix.data, batch * matrix.batch_stride + row + column * matrix.stride, matrix.type);
}

static void multiply(const Product &p) {
  std::vector<float> a((size_t)p.k * p.m), sum(p.m);
  for (int batch = 0; batch < p.count; batch++) {
    for (int l = 0; l < p.k; l++)
      for (int i = 0; i < p.m; i++) a[(size_t)l * p.m + i] = rounded(element(p.a, batch, i, l), p.tf32);
    for (int j = 0; j < p.n; j++) {
      std::fill(sum.begin(), sum.end(), 0);
      for (int l = 0; l < p.k; l++) {
        const float b = rounded(element(p.b, batch, l, j), p.tf32), *column = &a[(size_t)l * p.m];
        for (int i = 0; i < p.m; i++) sum[i] += column[i] * b;
      }
      for (int i = 0; i < p.m; i++)
        put(p.c.data, batch * p.c.batch_stride + i + j * p.c.stride, p.c.type,
            p.alpha * sum[i] + (p.beta ? p.beta * element(p.c, batch, i, j) : 0));
    }
  }
}

static int add(Handle *handle, const Product &product) {
  enqueue(handle->stream, [=] { multiply(product); });
  return OK;
}

static float scalar(const void *value, int compute) {
  return get(value, 0, compute == COMPUTE_16F || compute == COMPUTE_16F_PEDANTIC ? FLOAT16 : FLOAT32);
}

extern "C" {

int cublasCreate_v2(Handle **handle) { *handle = new Handle{}; return OK; }
int cublasDestroy_v2(Handle *handle) { delete handle; return OK; }
int cublasGetVersion_v2(Handle *, int *version) { *version = 120900; return OK; }
int cublasSetStream_v2(Handle *handle, void *stream) { handle->stream = stream; return OK; }
int cublasGetStream_v2(Handle *handle, void **stream) { *stream = handle->stream; return OK; }
int cublasSetPointerMode_v2(Handle *handle, int mode) { handle->pointer_mode = mode; return OK; }
int cublasGetPointerMode_v2(Handle *handle, int *mode) { *mode = handle->pointer_mode; return OK; }
int cublasSetMathMode(Handle *handle, int mode) { handle->math_mode = mode; return OK; }
int cublasGetMathMode(Handle *handle, int *mode) { *mode = handle->math_mode; return OK; }
int cublasSetWorkspace_v2(Handle *, void *, size_t) { return OK; }
int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                               void *a, Type type_a, int stride_a, long long batch_a, void *b, Type type_b,
                               int stride_b, long long batch_b, const void *beta, void *c, Type type_c,
                               int stride_c, long long batch_c, int count, int compute, int) {
  return add(handle, {m, n, k, count, scalar(alpha, compute), scalar(beta, compute),
                      {a, type_a, stride_a, batch_a, ta != 0}, {b, type_b, stride_b, batch_b, tb != 0},
                      {c, type_c, stride_c, batch_c, false},
                      type_a == FLOAT32 &&
                          (compute == COMPUTE_32F_FAST_TF32 || handle->math_mode == TF32_MATH)});
}
int cublasGemmEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, void *a, Type type_a,
                 int stride_a, void *b, Type type_b, int stride_b, const void *beta, void *c, Type type_c,
                 int stride_c, int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, type_a, stride_a, 0, b, type_b,
                                    stride_b, 0, beta, c, type_c, stride_c, 0, 1, compute, algorithm);
}
int cublasSgemm_v2(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, void *a,
                   int stride_a, void *b, int stride_b, const float *beta, void *c, int stride_c) {
  return cublasGemmEx(handle, ta, tb, m, n, k, alpha, a, FLOAT32, stride_a, b, FLOAT32, stride_b, beta, c,
                      FLOAT32, stride_c, 0, 0);
}
int cublasSgemmEx(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, void *a,
                  Type type_a, int stride_a, void *b, Type type_b, int stride_b, const float *beta, void *c,
                  Type type_c, int stride_c) {
  return cublasGemmEx(handle, ta, tb, m, n, k, alpha, a, type_a, stride_a, b, type_b, stride_b, beta, c,
                      type_c, stride_c, 0, 0);
}
int cublasSgemmStridedBatched(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha,
                              void *a, int stride_a, long long batch_a, void *b, int stride_b,
                              long long batch_b, const float *beta, void *c, int stride_c, long long batch_c,
                              int count) {
  return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, FLOAT32, stride_a, batch_a, b, FLOAT32,
                                    stride_b, batch_b, beta, c, FLOAT32, stride_c, batch_c, count, 0, 0);
}

}  // extern "C"
