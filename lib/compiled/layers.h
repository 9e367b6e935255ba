/* What lib/compiled/layers.c calls: see the files of these names. All arrays are contiguous float32. */

#ifndef LAYERS_H
#define LAYERS_H

#include <stddef.h>

typedef struct {
    ptrdiff_t images, in, height, width;      /* x: (images, in, height, width) */
    ptrdiff_t out, out_height, out_width;     /* y: (images, out, out_height, out_width) */
    ptrdiff_t ksize, stride, pad;             /* w: (out, in, ksize, ksize); pad < ksize */
} convolution;

/* Both return 0, or -1 where memory runs out. */
int convolve(convolution shape, const float *x, const float *w, float *y);
int convolve_backward(convolution shape, const float *x, const float *w, const float *gy, float *gx, float *gw);

typedef struct {
    ptrdiff_t images, channels, area;         /* x: (images, channels, area) */
    const float *gamma, *beta;                /* these and all statistics: (channels,) */
    float eps;
    int relu, of_batch;                       /* of_batch: mean and var are computed */
} normalization;

void normalize(normalization layer, const float *x, const float *residual, float *y, float *mean, float *var);
void normalize_backward(normalization layer, const float *x, const float *y, const float *gy, const float *mean,
                        const float *var, float *gx, float *gresidual, float *ggamma, float *gbeta);

#endif
