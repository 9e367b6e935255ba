/* 2-D convolution without bias, forward and backward, for models/convolution.py.

   The usual way copies every window of an image into a column and multiplies matrices; with 3 x 3 windows that
   writes and reads 9 times the image. Here nothing is copied but the image itself, once, into rows with zeros
   between them. All rows of some images then lie one after another, P numbers apart, and what a tap (ky, kx) of
   the kernel sees of output position q is the number at q + ky P + kx, for every q alike. In NumPy's terms,
   with stride 1, for X of shape (in, positions):

       y[o, q]            = sum over c, ky, kx of w[o, c, ky, kx] X[c, q + ky P + kx]
       gx[c, q]           = sum over o, ky, kx of w[o, c, ky, kx] GY[o, q - (ky - pad) P - (kx - pad)]
       gw[o, c, ky, kx]   = sum over q of GY[o, q] X[c, q + ky P + kx]

   so that vectors of neighbouring q are multiplied, whatever the width of the image. What comes out where the
   zeros lie is not copied to the result; GY has zeros there. With stride s, X is split into s x s images
   ("phases") of every s-th row and column, and so is gx.

   Each sum over taps or positions is made in one order (c, ky, kx; o, ky, kx; q), whatever the machine. */

#include <stdlib.h>

#include "layers.h"
#include "vectors.h"

/* What is multiplied at a time, so that sums and operands fill the registers: OUT planes with WIDE vectors of
   positions (forward), OUT planes with WIDE taps (gradient of the weights). */
#if LANES == 16
#define OUT 8
#define WIDE 3
#elif LANES == 8
#define OUT 4
#define WIDE 3
#else
#define OUT 4
#define WIDE 2
#endif
#define BLOCK (WIDE * LANES)            /* positions */
#define CHUNK (576 / BLOCK)             /* blocks whose OUT planes stay in the first cache */
#define PACKED (1 << 17)                /* floats of packed images at a time: half a second cache */
#define RESULTS (1 << 12)               /* floats of results before they are copied */
#define TAPS 96                         /* taps whose planes stay in the second cache */

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t parts_of(ptrdiff_t size, ptrdiff_t part) { return (size + part - 1) / part; }

/* Images laid out for vectors. Position q of plane p is
   start[q / BLOCK * block_stride + p * plane_stride + q % BLOCK]. */
typedef struct {
    float *memory, *start;
    ptrdiff_t planes, size;             /* floats of all of memory */
    ptrdiff_t block_stride, plane_stride;
} packed;

/* One grid for x, y and their gradients: an image has rows x columns positions. */
typedef struct {
    ptrdiff_t rows, columns, phases;    /* phases: of each axis of x */
    ptrdiff_t group, blocks;            /* images packed at a time, and their blocks */
} grid;

static grid grid_of(const convolution *shape)
{
    ptrdiff_t k = shape->ksize, s = shape->stride, pad = shape->pad, reach = (k - 1) / s;
    ptrdiff_t above = (k - 1 - pad) / s, below = (s - 1 + pad) / s;  /* how far gx sees into gy */
    ptrdiff_t shared = s == 1 ? pad : 0;  /* the zeros after a row are those before the next */
    ptrdiff_t sides[2], in[2] = {shape->height, shape->width}, out[2] = {shape->out_height, shape->out_width};
    for (int axis = 0; axis < 2; axis++)
        sides[axis] = larger(out[axis] + reach - shared,
                             larger(parts_of(in[axis], s) + below, out[axis] + above));
    grid g = {sides[0], sides[1], smaller(k, s), 1, 0};
    ptrdiff_t size = g.rows * g.columns, planes = shape->in * g.phases * g.phases + shape->out;
    g.group = larger(larger(PACKED / (planes * size), 8 * BLOCK / size), 1);
    g.group = smaller(g.group, larger(shape->images, 1));
    g.blocks = parts_of(g.group * size, BLOCK);
    return g;
}

/* Zeros, with room for the shifts of taps before and behind each plane. Where taps do not shift, the planes of
   a block lie together, as one read after the other. */
static int allocate(packed *images, const convolution *shape, const grid *g, ptrdiff_t planes)
{
    ptrdiff_t reach = (shape->ksize - 1) * (g->columns + 1);
    images->planes = planes;
    if (reach) {
        images->block_stride = BLOCK;
        images->plane_stride = parts_of(g->blocks * BLOCK + 2 * reach, 2 * LANES) * 2 * LANES + LANES;
        images->size = planes * images->plane_stride;
    } else {
        images->block_stride = planes * BLOCK;
        images->plane_stride = BLOCK;
        images->size = g->blocks * images->block_stride;
    }
    images->memory = calloc(images->size, sizeof(float));
    images->start = images->memory + reach;
    return images->memory ? 0 : -1;
}

INLINE void put(float *to, const float *from, ptrdiff_t size, ptrdiff_t step)
{
    if (step == 1)
        copy(to, from, size);
    else if (step == 2)
        for (ptrdiff_t i = 0; i < size; i++)
            to[i] = from[2 * i];
    else
        for (ptrdiff_t i = 0; i < size; i++)
            to[i] = from[step * i];
}

/* Rows of an image into a plane, from a position on; step: between the numbers of a row. */
static void put_rows(const packed *images, const grid *g, ptrdiff_t plane, ptrdiff_t position, const float *from,
                     ptrdiff_t rows, ptrdiff_t size, ptrdiff_t row_stride, ptrdiff_t step)
{
    float *to = images->start + plane * images->plane_stride;
    if (images->block_stride == BLOCK)
        for (to += position; rows > 0; rows--, to += g->columns, from += row_stride)
            put(to, from, size, step);
    for (; rows > 0; rows--, position += g->columns, from += row_stride)
        for (ptrdiff_t i = 0, length; i < size; i += length) {
            ptrdiff_t rest = (position + i) % BLOCK;
            length = smaller(size - i, BLOCK - rest);
            put(to + (position + i) / BLOCK * images->block_stride + rest, from + i * step, length, step);
        }
}

/* The phases of count images of x: phase (py, px) has pixel (r s + py - pad, q s + px - pad) at (r, q). */
static void pack_x(const packed *images, const convolution *shape, const grid *g, const float *x, ptrdiff_t count)
{
    ptrdiff_t s = shape->stride, pad = shape->pad;
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t c = 0; c < shape->in; c++, x += shape->height * shape->width)
            for (ptrdiff_t phase = 0; phase < g->phases * g->phases; phase++) {
                ptrdiff_t py = phase / g->phases - pad, px = phase % g->phases - pad;
                ptrdiff_t first = px < 0 ? parts_of(-px, s) : 0;
                ptrdiff_t size = smaller(parts_of(shape->width - px, s), g->columns) - first;
                ptrdiff_t top = py < 0 ? parts_of(-py, s) : 0;
                put_rows(images, g, c * g->phases * g->phases + phase, (i * g->rows + top) * g->columns + first,
                         x + (top * s + py) * shape->width + first * s + px,
                         smaller(parts_of(shape->height - py, s), g->rows) - top, size, s * shape->width, s);
            }
}

static void pack_gy(const packed *images, const convolution *shape, const grid *g, const float *gy, ptrdiff_t count)
{
    if (count < g->group)  /* what the group before left behind it */
        memset(images->memory, 0, images->size * sizeof(float));
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t o = 0; o < shape->out; o++, gy += shape->out_height * shape->out_width)
            put_rows(images, g, o, i * g->rows * g->columns, gy, shape->out_height, shape->out_width,
                     shape->out_width, 1);
}

/* Where a product of weights and packed images goes: position (r, q) of a grid of height x width to
   to[image, plane, r * step, q * step]. */
typedef struct {
    float *to;
    ptrdiff_t planes, image_stride, plane_stride, row_stride, step, height, width;
} target;

/* Copies positions from start to stop out of results (planes, stop - start). */
static void take(const target *t, const grid *g, ptrdiff_t count, ptrdiff_t start, ptrdiff_t stop,
                 const float *results)
{
    for (ptrdiff_t row = start / g->columns; row * g->columns < stop && row < count * g->rows; row++) {
        ptrdiff_t image = row / g->rows, r = row % g->rows, origin = row * g->columns;
        ptrdiff_t first = larger(start, origin), size = smaller(stop, origin + t->width) - first;
        if (r >= t->height || size <= 0)
            continue;
        float *to = t->to + image * t->image_stride + r * t->row_stride + (first - origin) * t->step;
        const float *from = results + first - start;
        for (ptrdiff_t p = 0; p < t->planes; p++, to += t->plane_stride, from += stop - start)
            if (t->step == 1)
                copy(to, from, size);
            else
                for (ptrdiff_t i = 0; i < size; i++)
                    to[i * t->step] = from[i];
    }
}

/* The taps of a product, and the weights as they are read: (planes / OUT, taps, OUT). */
typedef struct {
    ptrdiff_t taps, *shifts;
    float *weights;
} kernel;

static int allocate_kernel(kernel *k, ptrdiff_t taps, ptrdiff_t planes)
{
    k->taps = 0;
    k->shifts = malloc(taps * sizeof(ptrdiff_t));
    k->weights = calloc(parts_of(planes, OUT) * OUT * taps, sizeof(float));
    return k->shifts && k->weights ? 0 : -1;
}

static void free_kernel(kernel *k)
{
    free(k->shifts);
    free(k->weights);
}

/* One block of OUT planes. */
static void multiply(const kernel *k, const float *weights, const float *from, float *to, ptrdiff_t plane_stride)
{
    vector sums[OUT][WIDE];
    for (int o = 0; o < OUT; o++)
        for (int v = 0; v < WIDE; v++)
            sums[o][v] = all(0);
    for (ptrdiff_t t = 0; t < k->taps; t++, weights += OUT) {
        const float *values = from + k->shifts[t];
        vector x[WIDE];
        for (int v = 0; v < WIDE; v++)
            x[v] = load(values + v * LANES);
        for (int o = 0; o < OUT; o++) {
            vector weight = all(weights[o]);
            KEEP_IN_REGISTER(weight);
            for (int v = 0; v < WIDE; v++)
                sums[o][v] = multiply_add(weight, x[v], sums[o][v]);
        }
    }
    for (int o = 0; o < OUT; o++)
        for (int v = 0; v < WIDE; v++)
            store(to + o * plane_stride + v * LANES, sums[o][v]);
}

/* The product of a kernel with count packed images. */
static void product(const kernel *k, const packed *images, const grid *g, ptrdiff_t count, const target *t,
                    float *results)
{
    ptrdiff_t parts = parts_of(t->planes, OUT), blocks = parts_of(count * g->rows * g->columns, BLOCK);
    ptrdiff_t at_a_time = larger(RESULTS / (parts * OUT * BLOCK), 1);
    for (ptrdiff_t start = 0; start < blocks; start += at_a_time) {
        ptrdiff_t stop = smaller(start + at_a_time, blocks), size = (stop - start) * BLOCK;
        for (ptrdiff_t block = start; block < stop; block++)
            for (ptrdiff_t part = 0; part < parts; part++)
                multiply(k, k->weights + part * OUT * k->taps, images->start + block * images->block_stride,
                         results + part * OUT * size + (block - start) * BLOCK, size);
        take(t, g, count, start * BLOCK, stop * BLOCK, results);
    }
}

static float *allocate_results(ptrdiff_t planes)
{
    return malloc((RESULTS + (planes + OUT) * BLOCK) * sizeof(float));
}

static void shifts_of_x(ptrdiff_t *shifts, const convolution *shape, const grid *g, const packed *images)
{
    ptrdiff_t k = shape->ksize, s = shape->stride;
    for (ptrdiff_t c = 0; c < shape->in; c++)
        for (ptrdiff_t ky = 0; ky < k; ky++)
            for (ptrdiff_t kx = 0; kx < k; kx++)
                *shifts++ = ((c * g->phases + ky % s) * g->phases + kx % s) * images->plane_stride
                    + ky / s * g->columns + kx / s;
}

/* Without shifts an image is one row. */
static convolution simplified(convolution shape)
{
    if (shape.ksize == 1 && shape.stride == 1) {
        shape.out_width = shape.width *= shape.height;
        shape.out_height = shape.height = 1;
    }
    return shape;
}

int convolve(convolution shape, const float *x, const float *w, float *y)
{
    shape = simplified(shape);
    grid g = grid_of(&shape);
    ptrdiff_t taps = shape.in * shape.ksize * shape.ksize, area = shape.out_height * shape.out_width;
    packed images;
    kernel k;
    float *results = allocate_results(shape.out);
    int failed = allocate(&images, &shape, &g, shape.in * g.phases * g.phases)
        | allocate_kernel(&k, taps, shape.out) | !results;
    if (!failed) {
        k.taps = taps;
        shifts_of_x(k.shifts, &shape, &g, &images);
        for (ptrdiff_t o = 0; o < shape.out; o++)
            for (ptrdiff_t t = 0; t < taps; t++)
                k.weights[(o / OUT * taps + t) * OUT + o % OUT] = w[o * taps + t];
        target t = {y, shape.out, shape.out * area, area, shape.out_width, 1, shape.out_height, shape.out_width};
        for (ptrdiff_t start = 0; start < shape.images; start += g.group) {
            ptrdiff_t count = smaller(g.group, shape.images - start);
            pack_x(&images, &shape, &g, x + start * shape.in * shape.height * shape.width, count);
            t.to = y + start * t.image_stride;
            product(&k, &images, &g, count, &t, results);
        }
    }
    free(images.memory);
    free_kernel(&k);
    free(results);
    return failed ? -1 : 0;
}

/* The taps that reach phase (py, px) of gx: those with ky = py + pad and kx = px + pad, to multiples of s. */
static void kernel_of_phase(kernel *k, const convolution *shape, const grid *g, const packed *gy, ptrdiff_t py,
                            ptrdiff_t px, const float *w)
{
    ptrdiff_t size = shape->ksize, s = shape->stride, y = py + shape->pad, x = px + shape->pad;
    ptrdiff_t columns = g->columns, per_plane = 0, in = shape->in, t = 0;
    for (ptrdiff_t ky = y % s; ky < size; ky += s)
        for (ptrdiff_t kx = x % s; kx < size; kx += s)
            per_plane++;
    k->taps = shape->out * per_plane;
    for (ptrdiff_t o = 0; o < shape->out; o++)
        for (ptrdiff_t ky = y % s; ky < size; ky += s)
            for (ptrdiff_t kx = x % s; kx < size; kx += s, t++) {
                const float *from = w + ((o * in) * size + ky) * size + kx;
                k->shifts[t] = o * gy->plane_stride + (y - ky) / s * columns + (x - kx) / s;
                for (ptrdiff_t c = 0; c < in; c++)
                    k->weights[(c / OUT * k->taps + t) * OUT + c % OUT] = from[c * size * size];
            }
}

/* Adds the sums over the positions of some blocks, for OUT planes of gy and WIDE taps, to gw (OUT, taps). */
static void correlate(const packed *gy, const float *from_gy, const packed *x, const float *const *from_x,
                      ptrdiff_t blocks, float *gw, ptrdiff_t stride, ptrdiff_t n_out, ptrdiff_t n_taps)
{
    vector sums[WIDE][OUT];
    for (int t = 0; t < WIDE; t++)
        for (int o = 0; o < OUT; o++)
            sums[t][o] = all(0);
    ptrdiff_t at = 0, plane_stride = gy->plane_stride;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        for (int v = 0; v < WIDE; v++) {
            vector values[WIDE];
            for (int t = 0; t < WIDE; t++)
                values[t] = load(from_x[t] + at + v * LANES);
            for (int o = 0; o < OUT; o++) {
                vector g = load(from_gy + o * plane_stride + v * LANES);
                KEEP_IN_REGISTER(g);
                for (int t = 0; t < WIDE; t++)
                    sums[t][o] = multiply_add(g, values[t], sums[t][o]);
            }
        }
        at += x->block_stride;
        from_gy += gy->block_stride;
    }
    for (int t = 0; t < WIDE; t++) {
        float total[OUT];
        sums_of(sums[t], total);
        for (int o = 0; o < OUT; o++)
            if (o < n_out && t < n_taps)
                gw[o * stride + t] += total[o];
    }
}

static void weight_gradient(const packed *gy, const packed *x, const ptrdiff_t *shifts, ptrdiff_t out,
                            ptrdiff_t taps, ptrdiff_t blocks, float *gw)
{
    for (ptrdiff_t start = 0; start < blocks; start += CHUNK)
        for (ptrdiff_t some = 0; some < taps; some += TAPS)
            for (ptrdiff_t o = 0; o < out; o += OUT)
                for (ptrdiff_t t = some; t < smaller(some + TAPS, taps); t += WIDE) {
                    const float *from_x[WIDE];
                    for (ptrdiff_t i = 0; i < WIDE; i++)
                        from_x[i] = x->start + start * x->block_stride + shifts[smaller(t + i, taps - 1)];
                    correlate(gy, gy->start + start * gy->block_stride + o * gy->plane_stride, x, from_x,
                              smaller(CHUNK, blocks - start), gw + o * taps + t, taps, smaller(OUT, out - o),
                              smaller(WIDE, taps - t));
                }
}

/* gx may be NULL. */
int convolve_backward(convolution shape, const float *x, const float *w, const float *gy, float *gx, float *gw)
{
    shape = simplified(shape);
    grid g = grid_of(&shape);
    ptrdiff_t s = shape.stride, k2 = shape.ksize * shape.ksize, taps = shape.in * k2;
    ptrdiff_t area = shape.height * shape.width, n_phases = gx ? s * s : 0;
    packed x_images, gy_images;
    ptrdiff_t *shifts = malloc(taps * sizeof(ptrdiff_t));
    kernel *phases = calloc(n_phases + 1, sizeof(kernel));
    float *results = allocate_results(shape.in);
    int failed = allocate(&x_images, &shape, &g, shape.in * g.phases * g.phases)
        | allocate(&gy_images, &shape, &g, parts_of(shape.out, OUT) * OUT) | !shifts | !phases | !results;
    for (ptrdiff_t phase = 0; phase < n_phases && !failed; phase++) {
        failed |= allocate_kernel(phases + phase, shape.out * parts_of(shape.ksize, s) * parts_of(shape.ksize, s),
                                  shape.in);
        if (!failed)
            kernel_of_phase(phases + phase, &shape, &g, &gy_images, phase / s, phase % s, w);
    }
    if (!failed) {
        shifts_of_x(shifts, &shape, &g, &x_images);
        memset(gw, 0, shape.out * taps * sizeof(float));
        for (ptrdiff_t start = 0; start < shape.images; start += g.group) {
            ptrdiff_t count = smaller(g.group, shape.images - start);
            pack_x(&x_images, &shape, &g, x + start * shape.in * area, count);
            pack_gy(&gy_images, &shape, &g, gy + start * shape.out * shape.out_height * shape.out_width, count);
            weight_gradient(&gy_images, &x_images, shifts, shape.out, taps,
                            parts_of(count * g.rows * g.columns, BLOCK), gw);
            for (ptrdiff_t phase = 0; phase < n_phases; phase++) {
                ptrdiff_t py = phase / s, px = phase % s;
                target t = {gx + start * shape.in * area + py * shape.width + px, shape.in, shape.in * area, area,
                            s * shape.width, s, parts_of(shape.height - py, s), parts_of(shape.width - px, s)};
                product(phases + phase, &gy_images, &g, count, &t, results);
            }
        }
    }
    for (ptrdiff_t phase = 0; phases && phase < n_phases; phase++)
        free_kernel(phases + phase);
    free(phases);
    free(shifts);
    free(x_images.memory);
    free(gy_images.memory);
    free(results);
    return failed ? -1 : 0;
}
