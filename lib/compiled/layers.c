/* The layers of the networks on a CPU, for Python: convolution (lib/compiled/convolution.c) and batch normalization
   (lib/compiled/batch_normalization.c). This file checks arrays, releases the interpreter while they are worked on, and
   nothing else.

   It is compiled once for each width of vectors (lib/compiled/vectors.h), as the module _layers_NAME with -DNAME=NAME.
   All of it may hold instructions that the processor lacks: import what machine() of the baseline names, or
   less. Arrays are contiguous and float32. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "layers.h"

/* An argument: an array of so many dimensions; or None, where that may be. */
typedef struct {
    Py_buffer buffer;
    int writable, optional, dimensions;
} array;

static int get_array(PyObject *object, void *address)
{
    array *a = address;
    if (a->optional && object == Py_None)
        return 1;
    if (PyObject_GetBuffer(object, &a->buffer, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS
                           | (a->writable ? PyBUF_WRITABLE : 0)) < 0)
        return 0;
    if (strcmp(a->buffer.format, "f"))
        PyErr_Format(PyExc_TypeError, "array of type '%s': expected 'f'", a->buffer.format);
    else if (a->buffer.ndim != a->dimensions)
        PyErr_Format(PyExc_ValueError, "array of %d dimensions: expected %d", a->buffer.ndim, a->dimensions);
    else if ((uintptr_t)a->buffer.buf % sizeof(float))
        PyErr_SetString(PyExc_ValueError, "array of float32 at an address that is no multiple of 4");
    else
        return 1;
    return 0;
}

static int same_shape(const array *a, const array *b)
{
    return !a->buffer.obj || !b->buffer.obj
        || !memcmp(a->buffer.shape, b->buffer.shape, a->dimensions * sizeof(Py_ssize_t));
}

/* Lets go of the arrays; then None, or the exception. */
static PyObject *finish(array *arrays, int n_arrays, int parsed, int fit, int failed)
{
    for (int i = 0; i < n_arrays; i++)
        PyBuffer_Release(&arrays[i].buffer);
    if (!parsed)
        return NULL;
    if (!fit) {
        PyErr_SetString(PyExc_ValueError, "arrays do not fit each other");
        return NULL;
    }
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}


/* Convolution */

/* Whether arrays of these shapes belong to one convolution, which it then describes. */
static int is_convolution(convolution *shape, const array *x, const array *w, const array *y)
{
    const Py_ssize_t *xs = x->buffer.shape, *ws = w->buffer.shape, *ys = y->buffer.shape;
    shape->images = xs[0], shape->in = xs[1], shape->height = xs[2], shape->width = xs[3];
    shape->out = ws[0], shape->out_height = ys[2], shape->out_width = ys[3], shape->ksize = ws[2];
    Py_ssize_t k = shape->ksize, s = shape->stride, pad = shape->pad;
    return shape->in > 0 && shape->height > 0 && shape->width > 0 && shape->out > 0 && k > 0 && s > 0 && pad >= 0
        && pad < k && k < 1 << 15 && s < 1 << 15 && ws[1] == shape->in && ws[3] == k && ys[0] == shape->images
        && ys[1] == shape->out && shape->height + 2 * pad >= k && shape->width + 2 * pad >= k
        && ys[2] == (shape->height + 2 * pad - k) / s + 1 && ys[3] == (shape->width + 2 * pad - k) / s + 1;
}

static PyObject *py_convolve(PyObject *self, PyObject *args)
{
    enum {X, W, Y, N};
    array a[N] = {[X] = {.dimensions = 4}, [W] = {.dimensions = 4}, [Y] = {.dimensions = 4, .writable = 1}};
    convolution shape;
    int parsed = PyArg_ParseTuple(args, "O&O&nnO&:convolve", get_array, a + X, get_array, a + W, &shape.stride,
                                  &shape.pad, get_array, a + Y);
    int fit = parsed && is_convolution(&shape, a + X, a + W, a + Y), failed = 0;
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        failed = convolve(shape, a[X].buffer.buf, a[W].buffer.buf, a[Y].buffer.buf);
        Py_END_ALLOW_THREADS
    }
    return finish(a, N, parsed, fit, failed);
}

static PyObject *py_convolve_backward(PyObject *self, PyObject *args)
{
    enum {X, W, GY, GX, GW, N};
    array a[N] = {[X] = {.dimensions = 4}, [W] = {.dimensions = 4}, [GY] = {.dimensions = 4},
                  [GX] = {.dimensions = 4, .writable = 1, .optional = 1}, [GW] = {.dimensions = 4, .writable = 1}};
    convolution shape;
    int parsed = PyArg_ParseTuple(args, "O&O&O&nnO&O&:convolve_backward", get_array, a + X, get_array, a + W,
                                  get_array, a + GY, &shape.stride, &shape.pad, get_array, a + GX, get_array, a + GW);
    int fit = parsed && is_convolution(&shape, a + X, a + W, a + GY) && same_shape(a + X, a + GX)
        && same_shape(a + W, a + GW), failed = 0;
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        failed = convolve_backward(shape, a[X].buffer.buf, a[W].buffer.buf, a[GY].buffer.buf, a[GX].buffer.buf,
                                   a[GW].buffer.buf);
        Py_END_ALLOW_THREADS
    }
    return finish(a, N, parsed, fit, failed);
}


/* Batch normalization */

/* Whether x is of a layer with these arrays of its channels, which it then describes. */
static int is_normalization(normalization *layer, const array *x, const array *per_channel, int n_per_channel)
{
    const Py_ssize_t *shape = x->buffer.shape;
    layer->images = shape[0], layer->channels = shape[1], layer->area = shape[2] * shape[3];
    for (int i = 0; i < n_per_channel; i++)
        if (per_channel[i].buffer.shape[0] != layer->channels)
            return 0;
    return layer->images * layer->area > 0;
}

static PyObject *py_normalize(PyObject *self, PyObject *args)
{
    enum {X, RESIDUAL, Y, GAMMA, BETA, MEAN, VAR, N};
    array a[N] = {[X] = {.dimensions = 4}, [RESIDUAL] = {.dimensions = 4, .optional = 1},
                  [Y] = {.dimensions = 4, .writable = 1}, [GAMMA] = {.dimensions = 1}, [BETA] = {.dimensions = 1},
                  [MEAN] = {.dimensions = 1, .writable = 1}, [VAR] = {.dimensions = 1, .writable = 1}};
    normalization layer;
    int parsed = PyArg_ParseTuple(args, "O&O&O&O&O&O&O&fpp:normalize", get_array, a + X, get_array, a + RESIDUAL,
                                  get_array, a + Y, get_array, a + GAMMA, get_array, a + BETA, get_array, a + MEAN,
                                  get_array, a + VAR, &layer.eps, &layer.relu, &layer.of_batch);
    int fit = parsed && same_shape(a + X, a + Y) && same_shape(a + X, a + RESIDUAL)
        && is_normalization(&layer, a + X, a + GAMMA, N - GAMMA);
    if (fit) {
        layer.gamma = a[GAMMA].buffer.buf;
        layer.beta = a[BETA].buffer.buf;
        Py_BEGIN_ALLOW_THREADS
        normalize(layer, a[X].buffer.buf, a[RESIDUAL].buffer.buf, a[Y].buffer.buf, a[MEAN].buffer.buf,
                  a[VAR].buffer.buf);
        Py_END_ALLOW_THREADS
    }
    return finish(a, N, parsed, fit, 0);
}

static PyObject *py_normalize_backward(PyObject *self, PyObject *args)
{
    enum {X, Y, GY, GX, GRESIDUAL, GAMMA, MEAN, VAR, GGAMMA, GBETA, N};
    array a[N] = {[X] = {.dimensions = 4}, [Y] = {.dimensions = 4, .optional = 1}, [GY] = {.dimensions = 4},
                  [GX] = {.dimensions = 4, .writable = 1},
                  [GRESIDUAL] = {.dimensions = 4, .writable = 1, .optional = 1}, [GAMMA] = {.dimensions = 1},
                  [MEAN] = {.dimensions = 1}, [VAR] = {.dimensions = 1},
                  [GGAMMA] = {.dimensions = 1, .writable = 1}, [GBETA] = {.dimensions = 1, .writable = 1}};
    normalization layer = {0};
    int parsed = PyArg_ParseTuple(args, "O&O&O&O&O&O&O&O&O&O&f:normalize_backward", get_array, a + X, get_array,
                                  a + Y, get_array, a + GY, get_array, a + GX, get_array, a + GRESIDUAL, get_array,
                                  a + GAMMA, get_array, a + MEAN, get_array, a + VAR, get_array, a + GGAMMA,
                                  get_array, a + GBETA, &layer.eps);
    int fit = parsed && is_normalization(&layer, a + X, a + GAMMA, N - GAMMA);
    for (int i = Y; i < GAMMA; i++)
        fit = fit && same_shape(a + X, a + i);
    if (fit) {
        layer.gamma = a[GAMMA].buffer.buf;
        Py_BEGIN_ALLOW_THREADS
        normalize_backward(layer, a[X].buffer.buf, a[Y].buffer.buf, a[GY].buffer.buf, a[MEAN].buffer.buf,
                           a[VAR].buffer.buf, a[GX].buffer.buf, a[GRESIDUAL].buffer.buf, a[GGAMMA].buffer.buf,
                           a[GBETA].buffer.buf);
        Py_END_ALLOW_THREADS
    }
    return finish(a, N, parsed, fit, 0);
}


/* The module */

static PyObject *machine(PyObject *self, PyObject *unused)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2"))
        return PyUnicode_FromString(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
                                    ? "avx512" : "avx2");
#endif
    return PyUnicode_FromString("baseline");
}

static PyMethodDef functions[] = {
    {"machine", machine, METH_NOARGS, "machine()\n\nThe widest vectors that this processor has, by name."},
    {"convolve", py_convolve, METH_VARARGS,
     "convolve(x, w, stride, pad, y)\n\n(b, in, H, W); (out, in, k, k); (b, out, H', W'). y is written."},
    {"convolve_backward", py_convolve_backward, METH_VARARGS,
     "convolve_backward(x, w, gy, stride, pad, gx, gw)\n\ngx, which may be None, and gw are written."},
    {"normalize", py_normalize, METH_VARARGS,
     "normalize(x, residual, y, gamma, beta, mean, var, eps, relu, of_batch)\n\n"
     "(b, C, H, W), residual or None; y is written. (C,); mean and var are written where they are of the batch."},
    {"normalize_backward", py_normalize_backward, METH_VARARGS,
     "normalize_backward(x, y, gy, gx, gresidual, gamma, mean, var, ggamma, gbeta, eps)\n\n"
     "(b, C, H, W), y None without ReLU, gresidual None without residual; (C,). gx and below are written."},
    {NULL, NULL, 0, NULL}};

#define QUOTED(name) QUOTED_AS_IT_IS(name)
#define QUOTED_AS_IT_IS(name) #name

/* What these sources were when they were compiled: setup.py. */
static PyObject *with_sources(PyObject *self)
{
    if (self && PyModule_AddStringConstant(self, "sources", QUOTED(SOURCES)) < 0)
        Py_CLEAR(self);
    return self;
}

#define MODULE(name) static struct PyModuleDef module = { \
    PyModuleDef_HEAD_INIT, "_layers_" QUOTED(name), "Layers on a CPU; see lib/compiled/layers.c.", -1, functions, \
    NULL, NULL, NULL, NULL}; \
    PyMODINIT_FUNC PyInit__layers_##name(void) { return with_sources(PyModule_Create(&module)); }
#define EXPANDED(macro, name) macro(name)
EXPANDED(MODULE, NAME)
