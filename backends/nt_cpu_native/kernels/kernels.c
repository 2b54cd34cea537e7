/* The loops that take the time. Compiled once for each instruction set, with NT_TABLE naming the result. */
#include "kernels.h"

#include <string.h>

#if defined(__AVX512F__)
enum { WIDTH = 16 };
#elif defined(__AVX__)
enum { WIDTH = 8 };
#else
enum { WIDTH = 4 };
#endif
enum { PER_LINE = NT_LINE / WIDTH };

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4), may_alias));
typedef int32_t bits __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4), may_alias));

/* Accumulators are named one by one: gcc keeps an array of them in memory. */
#define TIMES_1(X) X(0)
#define TIMES_2(X) TIMES_1(X) X(1)
#define TIMES_3(X) TIMES_2(X) X(2)
#define TIMES_4(X) TIMES_3(X) X(3)
#define TIMES_5(X) TIMES_4(X) X(4)
#define TIMES_6(X) TIMES_5(X) X(5)
#define TIMES_7(X) TIMES_6(X) X(6)
#define TIMES_8(X) TIMES_7(X) X(7)

#define DECLARE(i) vec a##i;
#define DECLARE_SECOND(i) vec b##i = {0};
#define FROM_BIAS(i) a##i = start - (vec){0};
#define FROM_OUT(i) a##i = out[i];
#define ADD_PRODUCT(i) a##i += x * p[i];
#define ADD_SECOND(i) b##i += y * q[i];
#define ADD_SUMS(i) a##i += b##i;
#define ADD_RESIDUAL(i) a##i += residual[i];
#define RELU(i) a##i = (vec)(~(a##i < (vec){0}) & (bits)a##i); /* lets NaN through */
#define TO_OUT(i) out[i] = a##i;

#define AT(k) ((const vec *)(panel + (size_t)offsets[k] * NT_UNIT) + part)

/* One connection after another: enough accumulators to hide the latency of a multiply-add. */
#define SINGLY(n)                                                                                             \
    for (; k < end; k++) {                                                                                    \
        const vec *p = AT(k);                                                                                 \
        const float x = weights[k];                                                                           \
        TIMES_##n(ADD_PRODUCT)                                                                                \
    }

/* Two at a time, into accumulators of their own. */
#define IN_PAIRS(n)                                                                                           \
    TIMES_##n(DECLARE_SECOND) for (; k + 1 < end; k += 2)                                                     \
    {                                                                                                         \
        const vec *p = AT(k), *q = AT(k + 1);                                                                 \
        const float x = weights[k], y = weights[k + 1];                                                       \
        TIMES_##n(ADD_PRODUCT) TIMES_##n(ADD_SECOND)                                                          \
    }                                                                                                         \
    SINGLY(n) TIMES_##n(ADD_SUMS)

#define ROWS(n, ALL)                                                                                          \
    static void rows_##n(const nt_rows *t, int64_t part)                                                      \
    {                                                                                                         \
        const char *panel = t->panel;                                                                         \
        const float *weights = t->weights;                                                                    \
        const uint16_t *offsets = t->offsets;                                                                 \
        int64_t k = 0;                                                                                        \
        for (int64_t r = 0; r < t->count; r++) {                                                              \
            const int64_t end = k + t->counts[r], at = (int64_t)t->rows[r] * t->pitch;                        \
            vec *out = (vec *)(t->out + at) + part;                                                           \
            TIMES_##n(DECLARE) if (t->first)                                                                  \
            {                                                                                                 \
                const float start = t->bias ? t->bias[t->rows[r]] : 0.0f;                                     \
                TIMES_##n(FROM_BIAS)                                                                          \
            }                                                                                                 \
            else                                                                                              \
            {                                                                                                 \
                TIMES_##n(FROM_OUT)                                                                           \
            }                                                                                                 \
            {                                                                                                 \
                ALL(n)                                                                                        \
            }                                                                                                 \
            if (t->last && t->residual) {                                                                     \
                const vec *residual = (const vec *)(t->residual + at) + part;                                 \
                TIMES_##n(ADD_RESIDUAL)                                                                       \
            }                                                                                                 \
            if (t->last && t->relu) {                                                                         \
                TIMES_##n(RELU)                                                                               \
            }                                                                                                 \
            TIMES_##n(TO_OUT)                                                                                 \
        }                                                                                                     \
    }

ROWS(1, IN_PAIRS)
ROWS(2, IN_PAIRS)
ROWS(3, IN_PAIRS)
ROWS(4, IN_PAIRS)
ROWS(5, SINGLY)
ROWS(6, SINGLY)
ROWS(7, SINGLY)
ROWS(8, SINGLY)

static void rows(const nt_rows *task)
{
    static void (*const kernel[])(const nt_rows *, int64_t) = {
        rows_1, rows_2, rows_3, rows_4, rows_5, rows_6, rows_7, rows_8,
    };
    /* Narrow vectors take a tile in several passes of at most 8 accumulators. */
    for (int64_t part = 0, left = (int64_t)task->lines * PER_LINE; left > 0; part += 8, left -= 8)
        kernel[(left < 8 ? left : 8) - 1](task, part);
}

static void affine(float *out, const float *in, float scale, float shift, int relu, int64_t count)
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

static void add(float *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] += in[i];
}

static void multiply(float *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] *= in[i];
}

/* Copy count floats of a row, step apart, as they are or through the affine map before the kernel. */
static inline void take(const nt_panel *p, int64_t c, float *to, const float *from, int64_t count, int64_t step)
{
    const float scale = p->scale ? p->scale[c] : 1.0f, shift = p->shift ? p->shift[c] : 0.0f;
    if (step > 1) {
        for (int64_t i = 0; i < count; i++) {
            const float x = scale * from[i * step] + shift;
            to[i] = p->relu && x < 0.0f ? 0.0f : x;
        }
    } else if (p->scale || p->relu)
        affine(to, from, scale, shift, p->relu, count);
    else
        memcpy(to, from, (size_t)count * sizeof(float));
}

/* Fill one line of output positions (row y, columns x … x + count) of the plane of a kernel's element. */
static void segment(const nt_geometry *g, const nt_panel *p, int64_t c, const float *channel, float *to,
                    int64_t y, int64_t x, int64_t count, int64_t ky, int64_t kx)
{
    const int64_t row = y * g->stride_h + ky - g->pad_h, left = kx - g->pad_w;
    if (row < 0 || row >= g->in_h) {
        memset(to, 0, (size_t)count * sizeof(float));
        return;
    }
    /* columns i with 0 <= (x + i) * stride + left < in_w */
    const int64_t s = g->stride_w;
    int64_t begin = left + x * s < 0 ? (-left - x * s + s - 1) / s : 0;
    int64_t end = g->in_w - left - x * s > 0 ? (g->in_w - left - x * s + s - 1) / s : 0;
    if (begin > count)
        begin = count;
    if (end > count)
        end = count;
    if (end < begin)
        end = begin;
    memset(to, 0, (size_t)begin * sizeof(float));
    memset(to + end, 0, (size_t)(count - end) * sizeof(float));
    if (end > begin)
        take(p, c, to + begin, channel + row * g->in_w + (x + begin) * s + left, end - begin, s);
}

static void panel(const nt_geometry *g, const nt_panel *p)
{
    const int64_t floats = nt_channel_floats(g), whole = (p->count + NT_LINE - 1) / NT_LINE * NT_LINE;
    for (int64_t i = 0; i < p->channels; i++) {
        const int64_t c = p->channel + i;
        const float *channel = p->in + c * p->pitch;
        float *plane = p->panel + i * floats;
        if (g->shared) { /* tiles are whole rows */
            const int64_t y0 = p->begin / g->out_w, rows = p->count / g->out_w + g->kernel_h - 1;
            for (int64_t kx = 0; kx < g->kernel_w; kx++, plane += NT_TILE + (g->kernel_h - 1) * g->out_w)
                for (int64_t r = 0; r < rows; r++)
                    segment(g, p, c, channel, plane + r * g->out_w, y0 + r, 0, g->out_w, 0, kx);
            continue;
        }
        for (int64_t ky = 0; ky < g->kernel_h; ky++)
            for (int64_t kx = 0; kx < g->kernel_w; kx++, plane += NT_TILE) {
                for (int64_t done = 0; done < p->count;) {
                    const int64_t y = (p->begin + done) / g->out_w, x = (p->begin + done) % g->out_w;
                    int64_t n = g->out_w - x;
                    if (n > p->count - done)
                        n = p->count - done;
                    segment(g, p, c, channel, plane + done, y, x, n, ky, kx);
                    done += n;
                }
                memset(plane + p->count, 0, (size_t)(whole - p->count) * sizeof(float));
            }
    }
}

const nt_kernels NT_TABLE = {NT_NAME, rows, panel, affine, add, multiply};
