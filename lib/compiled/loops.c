/* Inner loops of the CPU in one pass over memory, where NumPy needs several: the update of RMSprop warm-up
   (lib/optimizers.py), the wire's arithmetic (lib/communication/wire.py), the normalization of images
   (lib/data/normalization.py). Those modules say what is computed, and do the same with NumPy where this file
   could not be compiled.

   The bits are NumPy's, but for which NaN: setup.py forbids the compiler to fuse or reorder operations, so that
   each is rounded by itself. Arrays (of payloads, their rows) are contiguous; Python's buffer protocol tells
   their types, which are checked. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define ON_X86 1
#endif

/* Compiled for AVX2 too, which the dynamic linker chooses where the processor has it. */
#if defined(ON_X86) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

/* Elements handled at a time by the loops of the wire: temporaries stay in the first cache. */
#define BLOCK 1024

static inline Py_ssize_t block_length(Py_ssize_t start, Py_ssize_t size)
{
    return size - start < BLOCK ? size - start : BLOCK;
}


/* RMSprop warm-up */

VECTORISED
static void update(Py_ssize_t size, float *restrict theta, const float *restrict grad, float *restrict m,
                   float *restrict delta, float eta, float alpha_sgd, float alpha_rmsprop, float mu1, float mu2,
                   float one_minus_mu2, float eps, float weight_decay)
{
    for (Py_ssize_t i = 0; i < size; i++) {
        float g = weight_decay != 0 ? theta[i] * weight_decay + grad[i] : grad[i];
        m[i] = m[i] * mu2 + g * g * one_minus_mu2;
        float alpha = alpha_rmsprop != 0 ? alpha_rmsprop / (sqrtf(m[i]) + eps) + alpha_sgd : alpha_sgd;
        delta[i] = delta[i] * mu1 - alpha * g;
        theta[i] += delta[i] * eta;
    }
}


/* float16, which C does not know everywhere, as the bits of a uint16_t */

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearest float16, ties to even. For |x| = 1.f × 2^e, adding 2^(e+13) leaves a unit in the last place of
   2^(e-10), which is float16's: float32's own addition rounds. Below float16's normal range the addend stays
   that of e = -14, which rounds to subnormals. */
static inline uint16_t narrowed(float x)
{
    const uint32_t one = 1u << 23, smallest = 113 * one, infinity = 255 * one;  /* biased exponents; 2^-14 */
    uint32_t magnitude = bits_of(x) & 0x7fffffff, exponent = magnitude & infinity;
    int overflows = magnitude >= 143 * one;
    exponent = exponent < smallest ? smallest : overflows ? 142 * one : exponent;
    uint32_t addend = exponent + 13 * one;
    uint32_t half = bits_of(float_of(magnitude) + float_of(addend)) - addend + ((exponent - smallest) >> 13);
    if (overflows)
        half = magnitude > infinity ? 0x7e00 : 0x7c00;
    return (uint16_t)(half | (bits_of(x) >> 16 & 0x8000));
}

static inline float widened(uint16_t half)
{
    uint32_t magnitude = half & 0x7fff, sign = (uint32_t)(half & 0x8000) << 16;
    if (magnitude < 0x400)  /* subnormal, in units of 2^-24 */
        return float_of(bits_of((float)(int32_t)magnitude * 0x1p-24f) | sign);
    uint32_t rebias = magnitude < 0x7c00 ? 112u << 23 : 224u << 23;  /* infinity and NaN go to 255 */
    return float_of(((magnitude << 13) + rebias) | sign);
}

static void narrow(Py_ssize_t size, const float *from, uint16_t *to)
{
    for (Py_ssize_t i = 0; i < size; i++)
        to[i] = narrowed(from[i]);
}

static void widen(Py_ssize_t size, const uint16_t *from, float *to)
{
    for (Py_ssize_t i = 0; i < size; i++)
        to[i] = widened(from[i]);
}

static void (*narrow_here)(Py_ssize_t, const float *, uint16_t *) = narrow;
static void (*widen_here)(Py_ssize_t, const uint16_t *, float *) = widen;

#ifdef ON_X86
__attribute__((target("avx2,f16c")))
static void narrow_f16c(Py_ssize_t size, const float *from, uint16_t *to)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8)
        _mm_storeu_si128((__m128i *)(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    narrow(size - i, from + i, to + i);
}

__attribute__((target("avx2,f16c")))
static void widen_f16c(Py_ssize_t size, const uint16_t *from, float *to)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= size; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    widen(size - i, from + i, to + i);
}
#endif

static void choose_conversions(void)
{
#ifdef ON_X86
    unsigned eax, ebx, ecx = 0, edx;
    if (__builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C) {
        narrow_here = narrow_f16c;
        widen_here = widen_f16c;
    }
#endif
}


/* The wire: arrays of float16 or float32, told apart by their item size */

static void round_to_wire(Py_ssize_t size, const float *from, char *to, Py_ssize_t itemsize)
{
    if (itemsize == sizeof(uint16_t))
        narrow_here(size, from, (uint16_t *)to);
    else
        memcpy(to, from, size * sizeof(float));
}

static void read_from_wire(Py_ssize_t size, const char *from, float *to, Py_ssize_t itemsize)
{
    if (itemsize == sizeof(uint16_t))
        widen_here(size, (const uint16_t *)from, to);
    else
        memcpy(to, from, size * sizeof(float));
}

VECTORISED
static void divide(Py_ssize_t size, const float *from, float *to, float divisor)
{
    for (Py_ssize_t i = 0; i < size; i++)
        to[i] = from[i] / divisor;
}

VECTORISED
static void multiply(Py_ssize_t size, float *values, float factor)
{
    for (Py_ssize_t i = 0; i < size; i++)
        values[i] *= factor;
}

VECTORISED
static void add(Py_ssize_t size, float *restrict total, const float *restrict values)
{
    for (Py_ssize_t i = 0; i < size; i++)
        total[i] += values[i];
}

VECTORISED
static int are_finite(Py_ssize_t size, const float *values)
{
    uint32_t largest = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        uint32_t magnitude = bits_of(values[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < 255u << 23;
}

static void to_wire(Py_ssize_t size, const float *gradient, char *out, Py_ssize_t itemsize, float workers)
{
    float quotient[BLOCK];
    if (workers == 1) {
        round_to_wire(size, gradient, out, itemsize);
        return;
    }
    for (Py_ssize_t start = 0; start < size; start += BLOCK) {
        Py_ssize_t length = block_length(start, size);
        divide(length, gradient + start, quotient, workers);
        round_to_wire(length, quotient, out + start * itemsize, itemsize);
    }
}

static void sum_payloads(Py_ssize_t size, Py_ssize_t n_payloads, const char *payloads, Py_ssize_t stride,
                         char *out, Py_ssize_t itemsize)
{
    float total[BLOCK], payload[BLOCK];
    for (Py_ssize_t start = 0; start < size; start += BLOCK) {
        Py_ssize_t length = block_length(start, size);
        read_from_wire(length, payloads + start * itemsize, total, itemsize);
        for (Py_ssize_t p = 1; p < n_payloads; p++) {
            read_from_wire(length, payloads + p * stride + start * itemsize, payload, itemsize);
            add(length, total, payload);
        }
        round_to_wire(length, total, out + start * itemsize, itemsize);
    }
}

static int from_wire(Py_ssize_t size, const char *total, float *out, Py_ssize_t itemsize, float divisor)
{
    int finite = 1;
    /* Dividing by a power of two (0 and infinity included) is multiplying by its inverse, which is quicker. */
    float inverse = 1 / divisor;
    int is_power_of_two = (bits_of(divisor) & 0x7fffff) == 0;
    for (Py_ssize_t start = 0; start < size; start += BLOCK) {
        Py_ssize_t length = block_length(start, size);
        read_from_wire(length, total + start * itemsize, out + start, itemsize);
        if (is_power_of_two)
            multiply(length, out + start, inverse);
        else
            divide(length, out + start, out + start, divisor);
        finite &= are_finite(length, out + start);
    }
    return finite;
}


/* Images */

static void normalize(Py_ssize_t n_images, Py_ssize_t area, const uint8_t *restrict pixels,
                      const float *restrict tables, float *restrict out)
{
    for (Py_ssize_t image = 0; image < n_images; image++, pixels += 3 * area, out += 3 * area)
        for (Py_ssize_t i = 0; i < area; i++)
            for (int channel = 0; channel < 3; channel++)
                out[channel * area + i] = tables[channel * 256 + pixels[3 * i + channel]];
}


/* Python */

static int get_array(PyObject *object, Py_buffer *array, const char *types, int flags)
{
    if (object == NULL) {  /* a later argument was refused */
        PyBuffer_Release(array);
        return 1;
    }
    if (PyObject_GetBuffer(object, array, PyBUF_FORMAT | flags) < 0)
        return 0;
    if (strlen(array->format) == 1 && strchr(types, *array->format))
        return Py_CLEANUP_SUPPORTED;
    PyErr_Format(PyExc_TypeError, "array of type '%s': expected '%s'", array->format, types);
    PyBuffer_Release(array);
    return 0;
}

#define ARRAY(name, types, flags) \
    static int name(PyObject *object, Py_buffer *array) { return get_array(object, array, types, flags); }

ARRAY(pixels, "B", PyBUF_C_CONTIGUOUS)
ARRAY(floats, "f", PyBUF_C_CONTIGUOUS)
ARRAY(floats_out, "f", PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
ARRAY(payload, "ef", PyBUF_C_CONTIGUOUS)
ARRAY(payload_out, "ef", PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
ARRAY(payload_rows, "ef", PyBUF_STRIDES)

static Py_ssize_t size_of(const Py_buffer *array) { return array->len / array->itemsize; }

/* Releases the arrays; then the result, or the exception where they do not fit each other. */
static PyObject *finish(Py_buffer **arrays, int n_arrays, int fit, PyObject *result)
{
    for (int i = 0; i < n_arrays; i++)
        PyBuffer_Release(arrays[i]);
    if (!fit) {
        PyErr_SetString(PyExc_ValueError, "arrays do not fit each other in size or type");
        return NULL;
    }
    Py_INCREF(result);
    return result;
}

static PyObject *py_update(PyObject *self, PyObject *args)
{
    Py_buffer theta, grad, m, delta, *arrays[] = {&theta, &grad, &m, &delta};
    float eta, alpha_sgd, alpha_rmsprop, mu1, mu2, one_minus_mu2, eps, weight_decay;
    if (!PyArg_ParseTuple(args, "O&O&O&O&ffffffff:update", floats_out, &theta, floats, &grad, floats_out, &m,
                          floats_out, &delta, &eta, &alpha_sgd, &alpha_rmsprop, &mu1, &mu2, &one_minus_mu2,
                          &eps, &weight_decay))
        return NULL;
    int fit = theta.len == grad.len && theta.len == m.len && theta.len == delta.len;
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        update(size_of(&theta), theta.buf, grad.buf, m.buf, delta.buf, eta, alpha_sgd, alpha_rmsprop, mu1, mu2,
               one_minus_mu2, eps, weight_decay);
        Py_END_ALLOW_THREADS
    }
    return finish(arrays, 4, fit, Py_None);
}

static PyObject *py_to_wire(PyObject *self, PyObject *args)
{
    Py_buffer gradient, out, *arrays[] = {&gradient, &out};
    float workers;
    if (!PyArg_ParseTuple(args, "O&O&f:to_wire", floats, &gradient, payload_out, &out, &workers))
        return NULL;
    int fit = size_of(&gradient) == size_of(&out);
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        to_wire(size_of(&out), gradient.buf, out.buf, out.itemsize, workers);
        Py_END_ALLOW_THREADS
    }
    return finish(arrays, 2, fit, Py_None);
}

static PyObject *py_sum_payloads(PyObject *self, PyObject *args)
{
    Py_buffer payloads, out, *arrays[] = {&payloads, &out};
    if (!PyArg_ParseTuple(args, "O&O&:sum_payloads", payload_rows, &payloads, payload_out, &out))
        return NULL;
    int fit = payloads.ndim == 2 && payloads.shape[0] > 0 && payloads.shape[1] == size_of(&out)
        && payloads.itemsize == out.itemsize && (out.len == 0 || payloads.strides[1] == out.itemsize);
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        sum_payloads(size_of(&out), payloads.shape[0], payloads.buf, payloads.strides[0], out.buf, out.itemsize);
        Py_END_ALLOW_THREADS
    }
    return finish(arrays, 2, fit, Py_None);
}

static PyObject *py_from_wire(PyObject *self, PyObject *args)
{
    Py_buffer total, out, *arrays[] = {&total, &out};
    float divisor;
    if (!PyArg_ParseTuple(args, "O&fO&:from_wire", payload, &total, &divisor, floats_out, &out))
        return NULL;
    int finite = 1, fit = size_of(&total) == size_of(&out);
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        finite = from_wire(size_of(&out), total.buf, out.buf, total.itemsize, divisor);
        Py_END_ALLOW_THREADS
    }
    return finish(arrays, 2, fit, finite ? Py_True : Py_False);
}

static PyObject *py_normalize(PyObject *self, PyObject *args)
{
    Py_buffer images, tables, out, *arrays[] = {&images, &tables, &out};
    if (!PyArg_ParseTuple(args, "O&O&O&:normalize", pixels, &images, floats, &tables, floats_out, &out))
        return NULL;
    int fit = images.ndim == 4 && images.shape[3] == 3 && size_of(&tables) == 3 * 256
        && size_of(&out) == images.len;
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        normalize(images.shape[0], images.shape[1] * images.shape[2], images.buf, tables.buf, out.buf);
        Py_END_ALLOW_THREADS
    }
    return finish(arrays, 3, fit, Py_None);
}

static PyMethodDef functions[] = {
    {"update", py_update, METH_VARARGS,
     "update(theta, grad, m, delta, eta, alpha_sgd, alpha_rmsprop, mu1, mu2, one_minus_mu2, eps, weight_decay)\n\n"
     "float32 arrays of one size; theta, m and delta are updated."},
    {"to_wire", py_to_wire, METH_VARARGS,
     "to_wire(gradient, out, workers)\n\nfloat32; float16 or float32."},
    {"sum_payloads", py_sum_payloads, METH_VARARGS,
     "sum_payloads(payloads, out)\n\nBoth float16 or both float32; payloads of shape (P, m) with contiguous rows."},
    {"from_wire", py_from_wire, METH_VARARGS,
     "from_wire(total, divisor, out)\n\nfloat16 or float32; float32. Returns whether out is finite everywhere."},
    {"normalize", py_normalize, METH_VARARGS,
     "normalize(images, tables, out)\n\nuint8 (b, H, W, 3); float32 (3, 256); float32 (b, 3, H, W)."},
    {NULL, NULL, 0, NULL}};

/* What these sources were when they were compiled: setup.py. */
#define QUOTED(name) QUOTED_AS_IT_IS(name)
#define QUOTED_AS_IT_IS(name) #name

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_loops", "Inner loops of the CPU; see lib/compiled/loops.c.", -1, functions,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__loops(void)
{
    choose_conversions();
    PyObject *self = PyModule_Create(&module);
    if (self && PyModule_AddStringConstant(self, "sources", QUOTED(SOURCES)) < 0)
        Py_CLEAR(self);
    return self;
}
