/* The loops that take the time. Compiled once for each instruction set, with NT_TABLE naming the result. */
#include "kernels.h"

#include <math.h>
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

/* Copy a channel's floats, as they are or through the affine map before the kernel. */
static inline void take(const nt_panel *p, int64_t c, float *to, const float *from, int64_t count)
{
    if (p->scale)
        affine(to, from, p->scale[c], p->shift[c], p->relu, count);
    else
        memcpy(to, from, (size_t)count * sizeof(float));
}

static inline void zero(float *to, int64_t count)
{
    if (count > 0)
        memset(to, 0, (size_t)count * sizeof(float));
}

/* Write one row of a channel with its padding: for each phase of the stride its columns side by side. */
static void pad_row(const nt_geometry *g, const nt_panel *p, int64_t c, const float *row, float *to)
{
    const int64_t s = g->stride_w, width = nt_phase_floats(g);
    for (int64_t phase = 0; phase < s; phase++, to += width) {
        /* columns j with 0 <= j * s + left < in_w */
        const int64_t left = phase - g->pad_w, room = g->in_w - left;
        int64_t begin = left < 0 ? (-left + s - 1) / s : 0, end = room > 0 ? (room + s - 1) / s : 0;
        end = end > width ? width : end;
        begin = begin > end ? end : begin;
        zero(to, begin);
        zero(to + end, width - end);
        if (s == 1)
            take(p, c, to + begin, row + begin + left, end - begin);
        else {
            for (int64_t j = begin; j < end; j++)
                to[j] = row[j * s + left];
            if (p->scale)
                affine(to + begin, to + begin, p->scale[c], p->shift[c], p->relu, end - begin);
        }
    }
}

#define COPY_ROWS(width)                                                                                      \
    for (int64_t r = 0; r < rows; r++)                                                                        \
        memcpy(to + r * (width), from + r * step, (size_t)(width) * sizeof(float))

/* Copy whole rows; the sizes that are common are copied without a call. */
static inline void copy_rows(float *to, const float *from, int64_t rows, int64_t width, int64_t step)
{
    if (width == 8)
        COPY_ROWS(8);
    else if (width == 16)
        COPY_ROWS(16);
    else if (width == 32)
        COPY_ROWS(32);
    else
        COPY_ROWS(width);
}

/* Copy some positions of an image's rows. */
static void copy_positions(float *to, const float *from, int64_t begin, int64_t count, int64_t width, int64_t step)
{
    if (begin % width == 0 && count % width == 0) {
        copy_rows(to, from, count / width, width, step);
        return;
    }
    for (int64_t done = 0, x = begin % width; done < count; x = 0, from += step) {
        const int64_t n = width - x < count - done ? width - x : count - done;
        memcpy(to + done, from + x, (size_t)n * sizeof(float));
        done += n;
    }
}

/* Planes of three kernel columns for whole rows: each row is read once, in pieces of 8 or 16 columns, shifted in
   registers and written where each kernel element needs it. */
#define THREE_COLUMNS(size, MIDDLE_TO_RIGHT, MIDDLE_TO_LEFT)                                                  \
    typedef float piece_##size __attribute__((vector_size((size) * 4), aligned(4), may_alias));               \
    typedef int32_t bits_##size __attribute__((vector_size((size) * 4), may_alias));                          \
    static inline piece_##size load_##size(const nt_panel *p, const float *from, float scale, float shift)    \
    {                                                                                                         \
        piece_##size x = *(const piece_##size *)from;                                                         \
        if (p->scale)                                                                                         \
            x = scale * x + shift;                                                                            \
        return p->relu ? (piece_##size)(~(x < (piece_##size){0}) & (bits_##size)x) : x;                       \
    }                                                                                                         \
    static void three_columns_##size(const nt_geometry *g, const nt_panel *p)                                 \
    {                                                                                                         \
        const int64_t width = g->out_w, pieces = width / (size), plane = nt_plane_floats(g);                  \
        const int64_t tall = p->count / width, rows = tall + g->kernel_h - 1;                                 \
        const int64_t top = p->begin / width - g->pad_h, copies = g->shared ? 1 : g->kernel_h;                \
        const piece_##size none = {0};                                                                        \
        for (int64_t i = 0; i < p->channels; i++) {                                                           \
            const int64_t c = p->channel + i;                                                                 \
            const float scale = p->scale ? p->scale[c] : 1.0f, shift = p->scale ? p->shift[c] : 0.0f;         \
            float *to = p->panel + i * nt_channel_floats(g);                                                  \
            for (int64_t r = 0; r < rows; r++) {                                                              \
                const int inside = top + r >= 0 && top + r < g->in_h;                                         \
                const float *row = p->in + c * p->pitch + (top + r) * width;                                  \
                piece_##size left = none, x = inside ? load_##size(p, row, scale, shift) : none;              \
                for (int64_t n = 0; n < pieces; n++) {                                                        \
                    const int more = inside && n + 1 < pieces;                                                \
                    const piece_##size right = more ? load_##size(p, row + (n + 1) * (size), scale, shift)    \
                                                    : none;                                                   \
                    const piece_##size before = MIDDLE_TO_RIGHT(left, x), after = MIDDLE_TO_LEFT(x, right);   \
                    for (int64_t ky = 0; ky < copies; ky++) {                                                 \
                        const int64_t y = r - ky;                                                             \
                        if (!g->shared && (y < 0 || y >= tall))                                               \
                            continue;                                                                         \
                        float *at = to + ky * 3 * plane + y * width + n * (size);                             \
                        *(piece_##size *)at = before;                                                         \
                        *(piece_##size *)(at + plane) = x;                                                    \
                        *(piece_##size *)(at + 2 * plane) = after;                                            \
                    }                                                                                         \
                    left = x;                                                                                 \
                    x = right;                                                                                \
                }                                                                                             \
            }                                                                                                 \
        }                                                                                                     \
    }

#define RIGHT_8(left, x) __builtin_shufflevector(left, x, 7, 8, 9, 10, 11, 12, 13, 14)
#define LEFT_8(x, right) __builtin_shufflevector(x, right, 1, 2, 3, 4, 5, 6, 7, 8)
#define RIGHT_16(left, x)                                                                                     \
    __builtin_shufflevector(left, x, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
#define LEFT_16(x, right)                                                                                     \
    __builtin_shufflevector(x, right, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)

THREE_COLUMNS(8, RIGHT_8, LEFT_8)
#if defined(__AVX512F__)
THREE_COLUMNS(16, RIGHT_16, LEFT_16)
#endif

static void any_panel(const nt_geometry *g, const nt_panel *p)
{
    const int64_t floats = nt_channel_floats(g), plane = nt_plane_floats(g);
    const int64_t tail = (p->count + NT_LINE - 1) / NT_LINE * NT_LINE - p->count;
    const int pointwise = floats == g->tile && g->in_h == g->out_h && g->in_w == g->out_w && !g->pad_h && !g->pad_w;
    const int64_t first = p->begin / g->out_w, last = (p->begin + p->count - 1) / g->out_w;
    const int64_t top = first * g->stride_h - g->pad_h, rows = (last - first) * g->stride_h + g->kernel_h;
    const int64_t phase = nt_phase_floats(g), step = g->stride_w * phase;
    for (int64_t i = 0; i < p->channels; i++) {
        const int64_t c = p->channel + i;
        const float *channel = p->in + c * p->pitch;
        float *to = p->panel + i * floats;
        if (pointwise) {
            take(p, c, to, channel + p->begin, p->count);
            zero(to + p->count, tail);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            if (top + r < 0 || top + r >= g->in_h)
                zero(p->scratch + r * step, step);
            else
                pad_row(g, p, c, channel + (top + r) * g->in_w, p->scratch + r * step);
        for (int64_t ky = 0; ky < (g->shared ? 1 : g->kernel_h); ky++)
            for (int64_t kx = 0; kx < g->kernel_w; kx++, to += plane) {
                const float *from = p->scratch + ky * step + kx % g->stride_w * phase + kx / g->stride_w;
                if (g->shared)
                    copy_rows(to, from, rows, g->out_w, step);
                else {
                    copy_positions(to, from, p->begin, p->count, g->out_w, g->stride_h * step);
                    zero(to + p->count, tail);
                }
            }
    }
}

static void panel(const nt_geometry *g, const nt_panel *p)
{
    const int64_t width = g->out_w;
    const int plain = g->kernel_w == 3 && g->pad_w == 1 && g->in_w == width && g->stride_w == 1 && g->stride_h == 1;
    if (plain && p->begin % width == 0 && p->count % width == 0 && p->count % NT_LINE == 0) {
#if defined(__AVX512F__)
        if (width % 16 == 0)
            return three_columns_16(g, p);
#endif
        if (width % 8 == 0)
            return three_columns_8(g, p);
    }
    any_panel(g, p);
}

#define EACH(expression)                                                                                      \
    for (int64_t i = 0; i < count; i++) {                                                                     \
        const float x = in[i];                                                                                \
        out[i] = (expression);                                                                                \
    }

static void function(int which, float *out, const float *in, int64_t count)
{
    switch (which) {
    case NT_GELU:
        EACH(0.5f * x * (1.0f + erff(x * 0.70710678f)))
        break;
    case NT_SILU:
        EACH(x / (1.0f + expf(-x)))
        break;
    case NT_TANH:
        EACH(tanhf(x))
        break;
    default:
        EACH(1.0f / (1.0f + expf(-x)))
    }
}

/* A line of positions at a time; its channels are read three times, from the cache. */
static void norm(const nt_norm *n)
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

/* Turn component c with c + size / 2 by its position's angle; Su et al. 2021, section 3.2.2. */
static void turn(const nt_attention *a, float *to, const float *from, int64_t step)
{
    const int64_t half = a->size / 2;
    for (int64_t c = 0; c < half; c++)
        for (int64_t i = 0; i < a->length; i++) {
            const float low = from[c * a->pitch + i], high = from[(c + half) * a->pitch + i];
            const float cosine = a->cosine[c * a->length + i], sine = a->sine[c * a->length + i];
            to[c * step + i] = low * cosine - high * sine;
            to[(c + half) * step + i] = high * cosine + low * sine;
        }
}

static void attend(const nt_attention *a)
{
    const int64_t step = (a->length + NT_LINE - 1) / NT_LINE * NT_LINE;
    float *q = a->scratch, *k = q + a->size * step, *share = k + a->size * step;
    if (a->cosine) {
        turn(a, q, a->q, step);
        turn(a, k, a->k, step);
    } else
        for (int64_t c = 0; c < a->size; c++) {
            memcpy(q + c * step, a->q + c * a->pitch, (size_t)a->length * sizeof(float));
            memcpy(k + c * step, a->k + c * a->pitch, (size_t)a->length * sizeof(float));
        }
    const float scale = 1.0f / sqrtf((float)a->size);
    for (int64_t i = 0; i < a->length; i++) {
        const int64_t seen = a->causal ? i + 1 : a->length;
        for (int64_t j = 0; j < seen; j++)
            share[j] = 0.0f;
        for (int64_t c = 0; c < a->size; c++) {
            const float x = q[c * step + i] * scale;
            for (int64_t j = 0; j < seen; j++)
                share[j] += x * k[c * step + j];
        }
        float most = share[0], sum = 0.0f;
        for (int64_t j = 1; j < seen; j++)
            most = share[j] > most ? share[j] : most;
        for (int64_t j = 0; j < seen; j++)
            sum += share[j] = expf(share[j] - most);
        for (int64_t c = 0; c < a->size; c++) {
            float found = 0.0f;
            for (int64_t j = 0; j < seen; j++)
                found += share[j] * a->v[c * a->pitch + j];
            a->out[c * a->pitch + i] = found / sum;
        }
    }
}

const nt_kernels NT_TABLE = {NT_NAME, rows, panel, affine, add, multiply, function, norm, attend};
