// What NVRTC knows by itself, for a kernel that g++ compiles. Precompiled, and included before all else.
#pragma once
#define __CUDACC_VER_MAJOR__ 12

#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

// CuPy defines these again.
#undef DBL_EPSILON
#undef DBL_MANT_DIG
#undef DBL_MAX
#undef DBL_MAX_EXP
#undef DBL_MIN
#undef FLT_EPSILON
#undef FLT_MANT_DIG
#undef FLT_MAX
#undef FLT_MAX_EXP
#undef FLT_MIN

#define __constant__ static
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static

using std::abs; using std::ceil; using std::copysign; using std::exp; using std::fabs; using std::floor;
using std::isfinite; using std::isinf; using std::isnan; using std::log; using std::max; using std::min;
using std::pow; using std::rint; using std::signbit; using std::sqrt; using std::trunc;

struct Position { unsigned x, y, z; };
static Position threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

static void __syncthreads();
static inline int __popc(unsigned value) { return __builtin_popcount(value); }
static inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
static inline int __clz(int value) { return value ? __builtin_clz(value) : 32; }
static inline float rsqrt(float value) { return 1 / sqrtf(value); }
static inline double rsqrt(double value) { return 1 / sqrt(value); }
template <class T, class F> static inline T reinterpreted(F from) {
  T to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __int_as_float(int bits) { return reinterpreted<float>(bits); }
static inline int __float_as_int(float value) { return reinterpreted<int>(value); }
static inline double __longlong_as_double(long long bits) { return reinterpreted<double>(bits); }
static inline long long __double_as_longlong(double value) { return reinterpreted<long long>(value); }

// Threads run one at a time.
template <class T> static inline T replaced(T *place, T value) { T old = *place; *place = value; return old; }
static inline int atomicAdd(int *place, int value) { return replaced(place, *place + value); }
static inline unsigned atomicAdd(unsigned *place, unsigned value) { return replaced(place, *place + value); }
static inline unsigned long long atomicAdd(unsigned long long *place, unsigned long long value) {
  return replaced(place, *place + value);
}
static inline float atomicAdd(float *place, float value) { return replaced(place, *place + value); }
static inline double atomicAdd(double *place, double value) { return replaced(place, *place + value); }
static inline unsigned long long atomicMax(unsigned long long *place, unsigned long long value) {
  return replaced(place, std::max(*place, value));
}
template <class T> static inline T atomicCAS(T *place, T expected, T value) {
  return replaced(place, *place == expected ? value : *place);
}
