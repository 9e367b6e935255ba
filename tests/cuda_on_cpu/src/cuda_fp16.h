// Half precision with the names of CUDA's header.
#pragma once

struct __half_raw { unsigned short x; };
struct __half {
  unsigned short bits;
  __half() = default;
  __half(float value) : bits(reinterpreted<unsigned short>((_Float16)value)) {}
  __half(const __half_raw &raw) : bits(raw.x) {}
  template <class T> explicit __half(T value) : __half((float)value) {}
  operator float() const { return reinterpreted<_Float16>(bits); }
  operator __half_raw() const { return {bits}; }
};
using half = __half;
static inline half __float2half_rn(float value) { return value; }
static inline float __half2float(half value) { return value; }
static inline half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
static inline unsigned short __half_as_ushort(half value) { return value.bits; }
