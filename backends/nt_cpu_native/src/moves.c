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
            for (int64_t c = first; c < last; c++)
                for (int64_t i = 0; i < n; i++)
                    if (o->kind == INPUT)
                        inside[c * step + i] = given[i * features + c];
                    else
                        wanted[i * features + c] = inside[c * step + i];
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
