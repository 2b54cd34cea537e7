/* Attention: lanes are queries. */
#include "vectors.h"

#include <math.h>
#include <string.h>

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

/* scores[j] = q · k_j for the queries of some lanes, and keys from begin to end; four keys at a time. */
static void score(const nt_attention *a, const float *q, const float *k, int64_t step, int64_t end, vec *scores)
{
    const float scale = 1.0f / sqrtf((float)a->size);
    for (int64_t j = 0; j < end; j += 4) {
        vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int64_t c = 0; c < a->size; c++) {
            const vec x = *(const vec *)(q + c * step);
            const float *key = k + c * step + j; /* rows are whole lines: what lies behind the last is not used */
            s0 += x * key[0];
            s1 += x * key[1];
            s2 += x * key[2];
            s3 += x * key[3];
        }
        scores[j] = s0 * scale;
        scores[j + 1] = s1 * scale;
        scores[j + 2] = s2 * scale;
        scores[j + 3] = s3 * scale;
    }
}

static inline vec larger(vec a, vec b)
{
    const bits keep = ~(b > a); /* NaN in a stays; NaN in b is found when it is a */
    return (vec)(((bits)a & keep) | ((bits)b & ~keep));
}

/* Lanes are queries; of a causal head, a lane sees the keys up to its own. Returns the sums of the shares. */
static vec soften(const nt_attention *a, int64_t first, int64_t end, vec *scores)
{
    union {
        int32_t lane[WIDTH];
        bits all;
    } own;
    for (int i = 0; i < WIDTH; i++)
        own.lane[i] = a->causal ? (int32_t)first + i : (int32_t)a->length;
    vec most = scores[0], sum = {0};
    for (int64_t j = 1; j < end; j++) {
        const bits seen = own.all >= (bits){0} + (int32_t)j;
        most = (vec)(((bits)larger(most, scores[j]) & seen) | ((bits)most & ~seen));
    }
    for (int64_t j = 0; j < end; j++) {
        const bits seen = own.all >= (bits){0} + (int32_t)j;
        scores[j] = (vec)((bits)exponential(scores[j] - most) & seen);
        sum += scores[j];
    }
    return sum;
}

void NT_OF(attend)(const nt_attention *a)
{
    const int64_t step = (a->length + NT_LINE - 1) / NT_LINE * NT_LINE;
    float *q = a->scratch, *k = q + a->size * step;
    vec *scores = (vec *)(k + a->size * step);
    memset(q, 0, (size_t)(2 * a->size * step) * sizeof(float));
    if (a->cosine) {
        turn(a, q, a->q, step);
        turn(a, k, a->k, step);
    } else
        for (int64_t c = 0; c < a->size; c++) {
            memcpy(q + c * step, a->q + c * a->pitch, (size_t)a->length * sizeof(float));
            memcpy(k + c * step, a->k + c * a->pitch, (size_t)a->length * sizeof(float));
        }
    for (int64_t first = 0; first < a->length; first += WIDTH) {
        const int64_t lanes = a->length - first < WIDTH ? a->length - first : WIDTH;
        const int64_t end = a->causal ? first + lanes : a->length;
        score(a, q + first, k, step, end, scores);
        const vec whole = 1.0f / soften(a, first, end, scores);
        for (int64_t c = 0; c < a->size; c++) {
            const float *v = a->v + c * a->pitch;
            vec even = {0}, odd = {0};
            int64_t j = 0;
            for (; j + 1 < end; j += 2) {
                even += scores[j] * v[j];
                odd += scores[j + 1] * v[j + 1];
            }
            if (j < end)
                even += scores[j] * v[j];
            const vec found = (even + odd) * whole;
            memcpy(a->out + c * a->pitch + first, &found, (size_t)lanes * sizeof(float));
        }
    }
}
