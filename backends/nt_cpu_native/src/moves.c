#include "program.h"

#include <string.h>

enum { ABREAST = 8 }; /* rows read or written at once: as many as a cache has ways, should they lie 4 KiB apart */

void run_move(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const side *f = &o->from, *t = &o->to;
    const int64_t in_pitch = pitch(e, in), out_pitch = pitch(e, out), items = w->examples * o->loops[0];
    const int64_t in_step = f->channel_steps[2] * in_pitch + f->position_steps[2];
    const int64_t out_step = t->channel_steps[2] * out_pitch + t->position_steps[2];
    /* A transposition: several of the outer loop's steps at once, so that each line is touched once. */
    const int crossed = in_step == 1 && !t->channel_steps[0] && t->position_steps[0] == 1 && o->loops[1] == 1;
    const int64_t end = share(items, w->thread + 1, w->threads);
    for (int64_t item = share(items, w->thread, w->threads), done = 1; item < end; item += done) {
        const int64_t b = item / o->loops[0], i = item % o->loops[0];
        const int64_t left = o->loops[0] - i < end - item ? o->loops[0] - i : end - item;
        if (crossed && left >= ABREAST) {
            const int64_t far = f->channel_steps[0] * in_pitch + f->position_steps[0];
            const float *from = row_of(w, in, b, f->channel + i * f->channel_steps[0]) + f->position +
                                i * f->position_steps[0];
            float *to = row_of(w, out, b, t->channel) + t->position + i;
            for (int64_t k = 0; k < o->loops[2]; k++)
                for (int n = 0; n < ABREAST; n++)
                    to[k * out_step + n] = from[n * far + k];
            done = ABREAST;
            continue;
        }
        done = 1;
        for (int64_t j = 0; j < o->loops[1]; j++) {
            const float *from = row_of(w, in, b, f->channel + i * f->channel_steps[0] + j * f->channel_steps[1]) +
                                f->position + i * f->position_steps[0] + j * f->position_steps[1];
            float *to = row_of(w, out, b, t->channel + i * t->channel_steps[0] + j * t->channel_steps[1]) +
                        t->position + i * t->position_steps[0] + j * t->position_steps[1];
            if (in_step == 1 && out_step == 1)
                memcpy(to, from, (size_t)o->loops[2] * sizeof(float));
            else
                for (int64_t k = 0; k < o->loops[2]; k++)
                    to[k * out_step] = from[k * in_step];
        }
    }
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Transpose 4 × 4 numbers. */
static inline void turn_four(const float *from, int64_t from_step, float *to, int64_t to_step)
{
    const four a = *(const four *)from, b = *(const four *)(from + from_step),
               c = *(const four *)(from + 2 * from_step), d = *(const four *)(from + 3 * from_step);
    const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(four *)(to + to_step) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * to_step) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
    *(four *)(to + 3 * to_step) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

/* Write the columns of a matrix as rows. */
static void turn(const float *from, int64_t from_step, float *to, int64_t to_step, int64_t rows, int64_t columns)
{
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t c = 0; c < whole_columns; c += 4)
        for (int64_t r = 0; r < whole_rows; r += 4)
            turn_four(from + r * from_step + c, from_step, to + c * to_step + r, to_step);
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            to[c * to_step + r] = from[r * from_step + c];
}

enum { FEATURES = 32 }; /* that are transposed for all examples before the next: they stay in the cache */

/* Between the caller's arrays, (examples, channels), and values in which examples stand side by side. */
static void transpose(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *v = &e->values[o->in];
    const int64_t step = pitch(e, v), features = v->channels;
    const int64_t begin = share(features, w->thread, w->threads), end = share(features, w->thread + 1, w->threads);
    for (int64_t first = begin; first < end; first += FEATURES)
        for (int64_t b = 0; b < w->examples; b += ABREAST) {
            const int64_t n = w->examples - b < ABREAST ? w->examples - b : ABREAST;
            const int64_t last = end - first < FEATURES ? end : first + FEATURES;
            float *inside = w->memory + v->at + b;
            const float *given = w->input + (w->first + b) * features;
            float *wanted = w->output + (o->index * w->all + w->first + b) * e->output_floats;
            if (o->kind == INPUT)
                turn(given + first, features, inside + first * step, step, n, last - first);
            else
                turn(inside + first * step, step, wanted + first, features, last - first, n);
        }
}

/* Between the caller's arrays, (examples, channels, positions), and values. */
void run_across(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *v = &e->values[o->in];
    const int64_t n = v->positions, rows = w->examples * v->channels;
    if (n == 1 && v->merged) {
        transpose(w, o);
        return;
    }
    for (int64_t i = share(rows, w->thread, w->threads); i < share(rows, w->thread + 1, w->threads); i++) {
        const int64_t b = i / v->channels, c = i % v->channels;
        float *inside = row_of(w, v, b, c);
        if (o->kind == INPUT)
            memcpy(inside, w->input + (w->first * v->channels + i) * n, (size_t)n * sizeof(float));
        else
            memcpy(w->output + (o->index * w->all + w->first + b) * e->output_floats + c * n, inside,
                   (size_t)n * sizeof(float));
    }
}
