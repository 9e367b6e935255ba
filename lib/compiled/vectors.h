/* Vectors of float32 as wide as the compiler may assume them: 16 numbers with AVX-512, 8 with AVX2 and FMA, 4
   otherwise. setup.py compiles every file that includes this one once for each (lib/compiled/__init__.py chooses).

   In these files each operation is rounded by itself, and each sum has one order: setup.py forbids the compiler
   to fuse or reorder, and where a product and a sum are to be rounded once, multiply_add says so. The bits then
   depend on the vectors' width alone, not on the compiler, the processor, or where in memory an array lies. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stddef.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int mask __attribute__((vector_size(4 * LANES)));  /* of a comparison: -1 where it holds, else 0 */
typedef float vector_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half_anywhere __attribute__((vector_size(2 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const float *from) { return *(const vector_anywhere *)from; }
INLINE void store(float *to, vector values) { *(vector_anywhere *)to = values; }
INLINE vector all(float value) { return value - (vector){0}; }

/* With AVX-512 compilers else load a vector again for each use, as an operand from memory. (With 16 registers
   there is none to spare.) */
#if LANES == 16
#define KEEP_IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define KEEP_IN_REGISTER(v)
#endif

/* a * b + c, rounded once where the processor can. */
INLINE vector multiply_add(vector a, vector b, vector c)
{
#if LANES == 16
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float multiply_add_1(float a, float b, float c)
{
#if LANES > 4
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* The sum of a vector's numbers: its halves are added until one number is left. */
INLINE float sum_of(vector values)
{
#if LANES == 16
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)values), _mm256_castpd_ps(
        _mm512_extractf64x4_pd(_mm512_castps_pd((__m512)values), 1)));
#elif LANES == 8
    __m256 eight = (__m256)values;
#endif
#if LANES > 4
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
    vector four = values;
#endif
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The same of eight vectors (AVX-512) or four: halves of two vectors are added as one. */
INLINE void sums_of(const vector *values, float *sums)
{
#if LANES == 16
    static const int place[8] = {0, 4, 8, 12, 1, 5, 9, 13};
    __m512 eights[4], fours[2], twos;
    float part[16];
    for (int i = 0; i < 4; i++)
        eights[i] = _mm512_shuffle_f32x4((__m512)values[2 * i], (__m512)values[2 * i + 1], 0x44)
            + _mm512_shuffle_f32x4((__m512)values[2 * i], (__m512)values[2 * i + 1], 0xee);
    for (int i = 0; i < 2; i++)
        fours[i] = _mm512_shuffle_f32x4(eights[2 * i], eights[2 * i + 1], 0x88)
            + _mm512_shuffle_f32x4(eights[2 * i], eights[2 * i + 1], 0xdd);
    twos = _mm512_shuffle_ps(fours[0], fours[1], 0x44) + _mm512_shuffle_ps(fours[0], fours[1], 0xee);
    _mm512_storeu_ps(part, _mm512_shuffle_ps(twos, twos, 0x88) + _mm512_shuffle_ps(twos, twos, 0xdd));
    for (int i = 0; i < 8; i++)
        sums[i] = part[place[i]];
#elif LANES == 8
    static const int place[4] = {0, 4, 1, 5};
    __m256 fours[2], twos;
    float part[8];
    for (int i = 0; i < 2; i++)
        fours[i] = _mm256_permute2f128_ps((__m256)values[2 * i], (__m256)values[2 * i + 1], 0x20)
            + _mm256_permute2f128_ps((__m256)values[2 * i], (__m256)values[2 * i + 1], 0x31);
    twos = _mm256_shuffle_ps(fours[0], fours[1], 0x44) + _mm256_shuffle_ps(fours[0], fours[1], 0xee);
    _mm256_storeu_ps(part, _mm256_shuffle_ps(twos, twos, 0x88) + _mm256_shuffle_ps(twos, twos, 0xdd));
    for (int i = 0; i < 4; i++)
        sums[i] = part[place[i]];
#else
    for (int i = 0; i < 4; i++)
        sums[i] = sum_of(values[i]);
#endif
}

/* memcpy of a row, which is short. */
INLINE void copy(float *to, const float *from, ptrdiff_t size)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= size; i += LANES)
        store(to + i, load(from + i));
    if (i + LANES / 2 <= size) {
        *(half_anywhere *)(to + i) = *(const half_anywhere *)(from + i);
        i += LANES / 2;
    }
    for (; i < size; i++)
        to[i] = from[i];
}

#endif
