/* Batch normalization, with what follows it in a residual network, for models/batch_normalization.py. In
   NumPy's terms, for x of shape (images, channels, area) and statistics over images and area:

       x_hat = (x - mean) / sqrt(var + eps)
       y     = maximum(gamma * x_hat + beta + residual, 0)

   and backward, where g, the gradient of residual, is what ReLU lets through, and m = images * area:

       g      = gy * (y > 0)
       gbeta  = sum(g)
       ggamma = sum(g * x_hat)
       gx     = gamma / sqrt(var + eps) * (g - gbeta / m - x_hat * ggamma / m)

   A channel is finished before the next is begun, so that it comes from memory once. A NaN stays one, and so is
   0 * inf, as with NumPy. Sums are of LANES numbers side by side along an image, then of images in float64. */

#include <math.h>

#include "layers.h"
#include "vectors.h"

#define SIDE 4  /* vectors of sums in turn, as an addition takes several cycles */

INLINE double sum_of_turns(const vector *sums, float rest)
{
    return (double)sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

/* The sum over an image of x - mean, or of its square. */
INLINE double sum_differences(const float *x, ptrdiff_t area, float mean, int squared)
{
    vector sums[SIDE] = {{0}};
    float rest = 0;
    ptrdiff_t i = 0;
    for (; i + LANES <= area; i += LANES) {
        vector difference = load(x + i) - mean;
        sums[0] = squared ? multiply_add(difference, difference, sums[0]) : sums[0] + difference;
        vector next = sums[0];  /* the sums take turns */
        sums[0] = sums[1], sums[1] = sums[2], sums[2] = sums[3], sums[3] = next;
    }
    for (; i < area; i++) {
        float difference = x[i] - mean;
        rest = squared ? multiply_add_1(difference, difference, rest) : rest + difference;
    }
    return sum_of_turns(sums, rest);
}

static void statistics_of(const normalization *layer, const float *x, ptrdiff_t channel, float *mean, float *var)
{
    ptrdiff_t area = layer->area, stride = layer->channels * area;
    double m = (double)layer->images * area, sum = 0, squares = 0;
    for (ptrdiff_t i = 0; i < layer->images; i++)
        sum += sum_differences(x + i * stride + channel * area, area, 0, 0);
    mean[channel] = (float)(sum / m);
    for (ptrdiff_t i = 0; i < layer->images; i++)
        squares += sum_differences(x + i * stride + channel * area, area, mean[channel], 1);
    var[channel] = (float)(squares / m);
}

/* y of one channel of one image; residual may be NULL. */
INLINE void apply(const float *x, const float *residual, float *y, ptrdiff_t area, float mean, float scale,
                  float beta, int relu)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= area; i += LANES) {
        vector value = multiply_add(load(x + i) - mean, all(scale), all(beta));
        if (residual)
            value += load(residual + i);
        if (relu)
            value = (vector)((mask)value & ~(value < 0));
        store(y + i, value);
    }
    for (; i < area; i++) {
        float value = multiply_add_1(x[i] - mean, scale, beta);
        if (residual)
            value += residual[i];
        y[i] = relu && value < 0 ? 0 : value;
    }
}

static float inverse_deviation(const normalization *layer, const float *var, ptrdiff_t channel)
{
    return 1 / sqrtf(var[channel] + layer->eps);
}

static void normalize_channel(const normalization *layer, const float *x, const float *residual, float *y,
                              ptrdiff_t channel, float mean, float scale)
{
    float beta = layer->beta[channel];
    for (ptrdiff_t i = 0; i < layer->images; i++) {
        ptrdiff_t at = (i * layer->channels + channel) * layer->area;
        if (residual && layer->relu)
            apply(x + at, residual + at, y + at, layer->area, mean, scale, beta, 1);
        else if (residual)
            apply(x + at, residual + at, y + at, layer->area, mean, scale, beta, 0);
        else if (layer->relu)
            apply(x + at, NULL, y + at, layer->area, mean, scale, beta, 1);
        else
            apply(x + at, NULL, y + at, layer->area, mean, scale, beta, 0);
    }
}

void normalize(normalization layer, const float *x, const float *residual, float *y, float *mean, float *var)
{
    for (ptrdiff_t c = 0; c < layer.channels; c++) {
        if (layer.of_batch)
            statistics_of(&layer, x, c, mean, var);
        normalize_channel(&layer, x, residual, y, c, mean[c], layer.gamma[c] * inverse_deviation(&layer, var, c));
    }
}

/* gy * (y > 0), or gy where there is no ReLU. */
INLINE vector through(const float *gy, const float *y, ptrdiff_t i)
{
    return y ? load(gy + i) * (vector)((load(y + i) > 0) & (mask)all(1)) : load(gy + i);
}

INLINE float through_1(const float *gy, const float *y, ptrdiff_t i) { return y ? gy[i] * (y[i] > 0) : gy[i]; }

/* The sums over an image of g and of g (x - mean). */
INLINE void sum_gradients(const float *x, const float *y, const float *gy, ptrdiff_t area, float mean,
                          double *sum_g, double *sum_gx)
{
    vector g_sums[SIDE] = {{0}}, gx_sums[SIDE] = {{0}};
    float g_rest = 0, gx_rest = 0;
    ptrdiff_t i = 0;
    for (; i + LANES <= area; i += LANES) {
        vector g = through(gy, y, i);
        g_sums[0] += g;
        gx_sums[0] = multiply_add(g, load(x + i) - mean, gx_sums[0]);
        vector g_next = g_sums[0], gx_next = gx_sums[0];
        g_sums[0] = g_sums[1], g_sums[1] = g_sums[2], g_sums[2] = g_sums[3], g_sums[3] = g_next;
        gx_sums[0] = gx_sums[1], gx_sums[1] = gx_sums[2], gx_sums[2] = gx_sums[3], gx_sums[3] = gx_next;
    }
    for (; i < area; i++) {
        float g = through_1(gy, y, i);
        g_rest += g;
        gx_rest = multiply_add_1(g, x[i] - mean, gx_rest);
    }
    *sum_g += sum_of_turns(g_sums, g_rest);
    *sum_gx += sum_of_turns(gx_sums, gx_rest);
}

/* gx = factor (g - g_mean - (x - mean) slope); gresidual = g, unless it is NULL. */
INLINE void input_gradient(const float *x, const float *y, const float *gy, float *gx, float *gresidual,
                           ptrdiff_t area, float mean, float factor, float g_mean, float slope)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= area; i += LANES) {
        vector g = through(gy, y, i);
        if (gresidual)
            store(gresidual + i, g);
        store(gx + i, multiply_add(load(x + i) - mean, all(-slope), g - g_mean) * factor);
    }
    for (; i < area; i++) {
        float g = through_1(gy, y, i);
        if (gresidual)
            gresidual[i] = g;
        gx[i] = multiply_add_1(x[i] - mean, -slope, g - g_mean) * factor;
    }
}

INLINE void channel_backward(const normalization *layer, const float *x, const float *y, const float *gy,
                             float *gx, float *gresidual, ptrdiff_t c, float mean, float inverse, float *ggamma,
                             float *gbeta)
{
    ptrdiff_t area = layer->area;
    double m = (double)layer->images * area, sum_g = 0, sum_gx = 0;
    for (ptrdiff_t i = 0; i < layer->images; i++) {
        ptrdiff_t at = (i * layer->channels + c) * area;
        sum_gradients(x + at, y ? y + at : NULL, gy + at, area, mean, &sum_g, &sum_gx);
    }
    *gbeta = (float)sum_g;
    *ggamma = (float)(sum_gx * inverse);
    float factor = layer->gamma[c] * inverse, g_mean = (float)(sum_g / m);
    float slope = (float)(sum_gx * inverse * inverse / m);
    for (ptrdiff_t i = 0; i < layer->images; i++) {
        ptrdiff_t at = (i * layer->channels + c) * area;
        input_gradient(x + at, y ? y + at : NULL, gy + at, gx + at, gresidual ? gresidual + at : NULL, area, mean,
                       factor, g_mean, slope);
    }
}

/* y is NULL where there is no ReLU, gresidual where there is no residual. */
void normalize_backward(normalization layer, const float *x, const float *y, const float *gy, const float *mean,
                        const float *var, float *gx, float *gresidual, float *ggamma, float *gbeta)
{
    for (ptrdiff_t c = 0; c < layer.channels; c++) {
        float inverse = inverse_deviation(&layer, var, c);
        if (y && gresidual)
            channel_backward(&layer, x, y, gy, gx, gresidual, c, mean[c], inverse, ggamma + c, gbeta + c);
        else if (y)
            channel_backward(&layer, x, y, gy, gx, NULL, c, mean[c], inverse, ggamma + c, gbeta + c);
        else
            channel_backward(&layer, x, NULL, gy, gx, gresidual, c, mean[c], inverse, ggamma + c, gbeta + c);
    }
}
