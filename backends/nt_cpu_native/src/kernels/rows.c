/* Rows of a sparse matrix over a panel: where nearly all of the time goes.

   A row's connections stand one after another, so weights and offsets are read once, from front to back, and the
   processor fetches them by itself. Each connection multiplies a whole tile: its weight is loaded once for all
   positions of the tile, whose sums stay in registers until the row ends. A gather for each position would load
   as many numbers, but none of them in one piece. */
#include "vectors.h"

#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

#define DECLARE_OTHERS(i) vec c##i = {0}, d##i = {0};
#define ADD_THIRD(i) c##i += weights[k + 2] * AT(k + 2)[i];
#define ADD_FOURTH(i) d##i += weights[k + 3] * AT(k + 3)[i];
#define ADD_OTHERS(i) a##i += c##i + d##i;

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

/* Four at a time: one accumulator for a line would wait for itself. */
#define IN_FOURS(n)                                                                                           \
    TIMES_##n(DECLARE_SECOND) TIMES_##n(DECLARE_OTHERS) for (; k + 3 < end; k += 4)                           \
    {                                                                                                         \
        const vec *p = AT(k), *q = AT(k + 1);                                                                 \
        const float x = weights[k], y = weights[k + 1];                                                       \
        TIMES_##n(ADD_PRODUCT) TIMES_##n(ADD_SECOND) TIMES_##n(ADD_THIRD) TIMES_##n(ADD_FOURTH)               \
    }                                                                                                         \
    SINGLY(n) TIMES_##n(ADD_SUMS) TIMES_##n(ADD_OTHERS)

enum { AHEAD = 512 }; /* connections that are fetched early */

/* The streams are larger than the second-level cache, and the processor's own prefetcher stops at the end of each
   page of 4 KiB. Addresses are integers here, because a pointer beyond the end of an array is undefined in C even if
   nothing is read there; a prefetch of an address that does not exist does nothing. */
static inline void fetch_early(const float *weights, const uint16_t *offsets, int64_t begin, int64_t end)
{
    for (int64_t k = begin; k < end; k += 16) {
        __builtin_prefetch((const void *)((uintptr_t)(weights + k) + AHEAD * sizeof *weights));
        __builtin_prefetch((const void *)((uintptr_t)(offsets + k) + AHEAD * sizeof *offsets));
    }
}

#define ROWS(n, ALL)                                                                                          \
    static void rows_##n(const nt_rows *t, int64_t part)                                                      \
    {                                                                                                         \
        const char *panel = t->panel;                                                                         \
        const float *weights = t->weights;                                                                    \
        const uint16_t *offsets = t->offsets;                                                                 \
        int64_t k = 0;                                                                                        \
        for (int64_t r = 0; r < t->count; r++) {                                                              \
            const int64_t end = k + t->counts[r], at = (int64_t)t->rows[r] * t->pitch;                        \
            fetch_early(weights, offsets, k, end);                                                            \
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

ROWS(1, IN_FOURS)
ROWS(2, IN_FOURS)
ROWS(3, IN_PAIRS)
ROWS(4, IN_PAIRS)
ROWS(5, SINGLY)
ROWS(6, SINGLY)
ROWS(7, SINGLY)
ROWS(8, SINGLY)

void NT_OF(rows)(const nt_rows *task)
{
    static void (*const kernel[])(const nt_rows *, int64_t) = {
        rows_1, rows_2, rows_3, rows_4, rows_5, rows_6, rows_7, rows_8,
    };
    /* Narrow vectors take a tile in several passes of at most 8 accumulators. */
    for (int64_t part = 0, left = (int64_t)task->lines * PER_LINE; left > 0; part += 8, left -= 8)
        kernel[(left < 8 ? left : 8) - 1](task, part);
}

/* Aligned to 4 bytes, because rows begin at any connection; may_alias, because the numbers are floats elsewhere. */
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Four inputs. Their offsets come in one load, for loads are what this kernel waits for. */
static inline four gather(const float *inputs, const uint16_t *at)
{
    uint64_t all;
    memcpy(&all, at, sizeof all);
    return (four){inputs[(uint16_t)all], inputs[(uint16_t)(all >> 16)], inputs[(uint16_t)(all >> 32)], inputs[all >> 48]};
}

/* Write a row's sum. */
static inline void finish(const nt_rows *t, int64_t row, float sum)
{
    sum += t->bias ? t->bias[row] : 0.0f;
    if (t->residual)
        sum += t->residual[row * t->pitch];
    t->out[row * t->pitch] = t->relu && sum < 0.0f ? 0.0f : sum; /* lets NaN through */
}

static void load_dots(const nt_rows *t)
{
    const float *inputs = (const float *)t->panel, *weights = t->weights;
    const uint16_t *offsets = t->offsets;
    int64_t k = 0;
    for (int64_t r = 0; r < t->count; r++) {
        const int64_t end = k + t->counts[r];
        four sums[4] = {{0}}; /* four, because each waits for its own last multiply-add */
        for (; k + 31 < end; k += 32) {
            fetch_early(weights, offsets, k, k + 32);
            for (int i = 0; i < 32; i += 4)
                sums[i / 4 % 4] += *(const four *)(weights + k + i) * gather(inputs, offsets + k + i);
        }
        for (; k + 7 < end; k += 8)
            for (int i = 0; i < 8; i += 4)
                sums[i / 4] += *(const four *)(weights + k + i) * gather(inputs, offsets + k + i);
        const four all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        float sum = (all[0] + all[1]) + (all[2] + all[3]);
        for (; k < end; k++)
            sum += weights[k] * inputs[offsets[k]];
        finish(t, t->rows[r], sum);
    }
}

#ifdef __AVX512F__
static inline __m512 add_sixteen(__m512 sum, __mmask16 which, const float *inputs, const float *weights,
                                 const uint16_t *at)
{
    const __m512i places = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(which, at));
    const __m512 found = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), which, places, inputs, sizeof *inputs);
    return _mm512_fmadd_ps(_mm512_maskz_loadu_ps(which, weights), found, sum);
}

static void gather_dots(const nt_rows *t)
{
    const float *inputs = (const float *)t->panel, *weights = t->weights;
    const uint16_t *offsets = t->offsets;
    const __mmask16 all = 0xffff;
    int64_t k = 0;
    for (int64_t r = 0; r < t->count; r++) {
        const int64_t end = k + t->counts[r];
        __m512 one = _mm512_setzero_ps(), other = one;
        for (; k + 31 < end; k += 32) {
            fetch_early(weights, offsets, k, k + 32);
            one = add_sixteen(one, all, inputs, weights + k, offsets + k);
            other = add_sixteen(other, all, inputs, weights + k + 16, offsets + k + 16);
        }
        for (; k < end; k += 16)
            one = add_sixteen(one, end - k < 16 ? all >> (16 - (end - k)) : all, inputs, weights + k, offsets + k);
        k = end;
        finish(t, t->rows[r], _mm512_reduce_add_ps(_mm512_add_ps(one, other)));
    }
}
#endif

void NT_OF(dots)(const nt_rows *t)
{
#ifdef __AVX512F__
    /* Intel's processors gather faster than they load one by one, AMD's slower. */
    if (__builtin_cpu_is("intel")) {
        gather_dots(t);
        return;
    }
#endif
    load_dots(t);
}
