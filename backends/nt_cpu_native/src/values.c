#include "program.h"

#include <math.h>
#include <string.h>

/* Ops on whole rows: each thread takes some of them. */
void run_by_rows(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const int64_t rows = groups(in, w->examples) * in->channels, step = pitch(e, in);
    const int64_t count = lines(positions(in, w->examples)) * NT_LINE;
    for (int64_t i = share(rows, w->thread, w->threads); i < share(rows, w->thread + 1, w->threads); i++) {
        const float *from = w->memory + in->at + i * step;
        float *to = w->memory + out->at + i * step;
        if (o->kind == ADD)
            e->kernels->add(to, from, count);
        else if (o->kind == MULTIPLY)
            e->kernels->multiply(to, from, count);
        else if (o->kind == FUNCTION)
            e->kernels->function((int)o->index, to, from, count);
        else
            e->kernels->affine(to, from, o->scale[i % in->channels], o->shift[i % in->channels], (int)o->relu, count);
    }
}

void run_pool(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const nt_geometry *g = &o->geometry;
    const int64_t rows = w->examples * in->channels;
    for (int64_t i = share(rows, w->thread, w->threads); i < share(rows, w->thread + 1, w->threads); i++) {
        const float *from = row_of(w, in, i / in->channels, i % in->channels);
        float *to = row_of(w, out, i / in->channels, i % in->channels);
        for (int64_t y = 0; y < g->out_h; y++)
            for (int64_t x = 0; x < g->out_w; x++) {
                float found = 0;
                int any = 0;
                for (int64_t ky = 0; ky < g->kernel_h; ky++)
                    for (int64_t kx = 0; kx < g->kernel_w; kx++) {
                        const int64_t row = y * g->stride_h + ky - g->pad_h, column = x * g->stride_w + kx - g->pad_w;
                        if (row < 0 || row >= g->in_h || column < 0 || column >= g->in_w)
                            continue;
                        const float v = from[row * g->in_w + column];
                        if (o->kind == AVERAGE_POOL)
                            found += v;
                        else if (!any || v > found || v != v)
                            found = v;
                        any = 1;
                    }
                if (o->kind == AVERAGE_POOL)
                    found /= (float)(g->kernel_h * g->kernel_w);
                to[y * g->out_w + x] = found;
            }
    }
}

/* The mean over the positions of each example. */
void run_average(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const int64_t out_pitch = pitch(e, out), n = in->positions;
    for (int64_t c = share(in->channels, w->thread, w->threads); c < share(in->channels, w->thread + 1, w->threads); c++)
        for (int64_t b = 0; b < w->examples; b++) {
            const float *from = row_of(w, in, b, c);
            float sum = 0;
            for (int64_t i = 0; i < n; i++)
                sum += from[i];
            w->memory[out->at + c * out_pitch + b] = sum / (float)n;
        }
}

void run_norm(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const int64_t all = lines(positions(in, w->examples)), items = groups(in, w->examples) * all;
    const int64_t step = pitch(e, in), end = share(items, w->thread + 1, w->threads);
    for (int64_t item = share(items, w->thread, w->threads); item < end; item++) {
        const int64_t at = item / all * in->channels * step + item % all * NT_LINE;
        const nt_norm n = {w->memory + in->at + at, w->memory + out->at + at, step, in->channels, NT_LINE,
                           o->scale, o->bias, o->eps};
        e->kernels->norm(&n);
    }
}

void run_attention(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *keys = &e->values[o->keys];
    const int64_t size = in->channels / o->heads, items = w->examples * o->heads;
    for (int64_t item = share(items, w->thread, w->threads); item < share(items, w->thread + 1, w->threads); item++) {
        const int64_t b = item / o->heads, head = item % o->heads, c = head * size, from = head / o->shared * size;
        const nt_attention a = {row_of(w, in, b, c),
                                row_of(w, keys, b, from),
                                row_of(w, &e->values[o->values], b, from),
                                row_of(w, &e->values[o->out], b, c),
                                pitch(e, in),
                                size,
                                in->positions,
                                o->causal,
                                o->table,
                                o->sine,
                                w->panel + lines(e->panel_floats) * NT_LINE};
        e->kernels->attend(&a);
    }
}

/* Rows of a table by the tokens that stand in the input; what is no row becomes NaN. */
void run_embedding(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    for (int64_t b = 0; b < w->examples; b++)
        for (int64_t p = share(in->positions, w->thread, w->threads);
             p < share(in->positions, w->thread + 1, w->threads); p++) {
            const float token = row_of(w, in, b, 0)[p];
            const int known = token >= 0.0f && token < (float)o->rows;
            const float *row = o->table + (known ? (int64_t)token * out->channels : 0);
            for (int64_t c = 0; c < out->channels; c++)
                row_of(w, out, b, c)[p] = known ? row[c] : NAN;
        }
}

void run_fill(const worker *w, const op *o)
{
    const value *out = &w->engine->values[o->out];
    const int64_t items = w->examples * out->channels;
    for (int64_t i = share(items, w->thread, w->threads); i < share(items, w->thread + 1, w->threads); i++)
        memcpy(row_of(w, out, i / out->channels, i % out->channels) + o->index,
               o->table + i % out->channels * o->rows, (size_t)o->rows * sizeof(float));
}
