/* What is done to each number, or to each position. */
#include "vectors.h"

#include <math.h>
#include <string.h>

void NT_OF(affine)(float *out, const float *in, float scale, float shift, int relu, int64_t count)
{
    if (relu)
        for (int64_t i = 0; i < count; i++) {
            const float x = scale * in[i] + shift;
            out[i] = x < 0.0f ? 0.0f : x; /* lets NaN through */
        }
    else
        for (int64_t i = 0; i < count; i++)
            out[i] = scale * in[i] + shift;
}

void NT_OF(add)(float *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] += in[i];
}

void NT_OF(multiply)(float *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] *= in[i];
}

/* All rows are whole lines, so that the last lanes may be garbage. */
#define EACH(expression)                                                                                      \
    for (int64_t i = 0; i < count; i += WIDTH) {                                                              \
        const vec x = *(const vec *)(in + i);                                                                 \
        *(vec *)(out + i) = (expression);                                                                     \
    }

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

void NT_OF(function)(int which, float *out, const float *in, int64_t count)
{
    switch (which) {
    case NT_GELU:
        for (int64_t i = 0; i < count; i++)
            out[i] = 0.5f * in[i] * (1.0f + erff(in[i] * 0.70710678f));
        break;
    case NT_SILU:
        EACH(x * sigmoid(x))
        break;
    case NT_TANH:
        for (int64_t i = 0; i < count; i++)
            out[i] = tanhf(in[i]);
        break;
    default:
        EACH(sigmoid(x))
    }
}

int NT_OF(finite)(const float *in, int64_t count)
{
    uint32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, in + i, sizeof word);
        found |= (word & 0x7f800000) == 0x7f800000; /* the exponent of infinities and of NaN */
    }
    return !found;
}

/* A line of positions at a time; its channels are read three times, from the cache. */
void NT_OF(norm)(const nt_norm *n)
{
    for (int64_t p = 0; p < n->count; p += NT_LINE) {
        float mean[NT_LINE] = {0}, power[NT_LINE] = {0};
        if (n->bias) {
            for (int64_t c = 0; c < n->channels; c++)
                for (int i = 0; i < NT_LINE; i++)
                    mean[i] += n->in[c * n->pitch + p + i];
            for (int i = 0; i < NT_LINE; i++)
                mean[i] /= (float)n->channels;
        }
        for (int64_t c = 0; c < n->channels; c++)
            for (int i = 0; i < NT_LINE; i++) {
                const float x = n->in[c * n->pitch + p + i] - mean[i];
                power[i] += x * x;
            }
        for (int i = 0; i < NT_LINE; i++)
            power[i] = 1.0f / sqrtf(power[i] / (float)n->channels + n->eps);
        for (int64_t c = 0; c < n->channels; c++)
            for (int i = 0; i < NT_LINE; i++)
                n->out[c * n->pitch + p + i] = (n->in[c * n->pitch + p + i] - mean[i]) * power[i] * n->weight[c] +
                                               (n->bias ? n->bias[c] : 0.0f);
    }
}

/* Enough independent accumulators to keep every unit busy; narrow vectors take a line in parts. */
void NT_OF(multiply_adds)(int64_t rounds, float *out)
{
    const vec x = (vec){0} + 0.999f, y = (vec){0} + 1e-3f;
    vec a[12];
    for (int i = 0; i < 12; i++)
        a[i] = y * (float)i;
    for (int64_t r = 0; r < rounds * PER_LINE; r++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            a[i] = a[i] * x + y;
    vec sum = a[0];
    for (int i = 1; i < 12; i++)
        sum += a[i];
    *out = sum[0];
}
