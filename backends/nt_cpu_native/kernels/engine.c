#include "engine.h"
#include "kernels.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* A value: for each example (channels, positions), or for all examples one (channels, examples * positions).
   Rows are a pitch apart, a whole number of lines. */
typedef struct {
    int64_t at, channels, positions, merged; /* at: floats from the beginning of the working memory */
} value;

typedef struct {
    int64_t channel, channels;
    int64_t rows;
    const float *weights;
    const uint16_t *offsets, *counts, *which;
    int64_t *starts; /* the first connection of each row, and the number of all */
} block;

enum {
    PRODUCT,
    AFFINE,
    ADD,
    MULTIPLY,
    INPUT,
    OUTPUT,
    MAX_POOL,
    AVERAGE_POOL,
    GLOBAL_AVERAGE,
    MOVE,
    FUNCTION,
    NORM,
    ATTENTION,
    EMBEDDING,
    FILL,
    KINDS
};

/* Where one side of a move begins, and how far each of its three loops steps. */
typedef struct {
    int64_t channel, position, channel_steps[3], position_steps[3];
} side;

typedef struct {
    int64_t kind, in, out, residual, relu, index;
    nt_geometry geometry;
    const float *scale, *shift, *bias;
    int64_t pre_relu;
    block *blocks;
    int64_t block_count, chunk;
    int64_t loops[3]; /* of a move */
    side from, to;
    int64_t keys, values, heads, shared, causal; /* of attention */
    int64_t rows;                                /* of an embedding's table */
    const float *table, *sine;
    float eps;
} op;

struct nt_engine {
    value *values;
    op *ops;
    int64_t value_count, op_count, batch, floats, panel_floats, scratch_floats;
    int64_t input_floats, outputs, output_floats;
    const nt_kernels *kernels;
};

/* ---------------------------------------------------------------- which kernels */

static const nt_kernels *choose(void)
{
    const char *wish = getenv("NT_CPU_KERNELS");
#if defined(NT_X86)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (avx512 && (!wish || !strcmp(wish, "avx512")))
        return &nt_kernels_avx512;
    if (avx2 && (!wish || strcmp(wish, "portable")))
        return &nt_kernels_avx2;
#else
    (void)wish;
#endif
    return &nt_kernels_portable;
}

const char *nt_kernels_name(void) { return choose()->name; }

/* ---------------------------------------------------------------- reading a program */

typedef struct {
    const int64_t *code;
    int64_t words, at;
    const uint8_t *blob;
    int64_t bytes;
    char *error;
    int64_t error_bytes;
    int failed;
} reader;

static void fail(reader *r, const char *format, ...)
{
    if (r->failed)
        return;
    r->failed = 1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->error, (size_t)r->error_bytes, format, arguments);
    va_end(arguments);
}

static int64_t word(reader *r, const char *what, int64_t low, int64_t high)
{
    if (r->failed)
        return low;
    if (r->at >= r->words) {
        fail(r, "%s: the program ends before it", what);
        return low;
    }
    const int64_t found = r->code[r->at++];
    if (found < low || found > high) {
        fail(r, "%s: expected %lld to %lld, found %lld", what, (long long)low, (long long)high, (long long)found);
        return low;
    }
    return found;
}

enum { MOST = 1 << 28 }; /* of anything that is counted: products of three fit 64 bits only if checked */

/* Return where count elements lie in the blob; NULL if the program says -1. */
static const void *numbers(reader *r, const char *what, int64_t count, int64_t size, int optional)
{
    const int64_t at = word(r, what, optional ? -1 : 0, r->bytes);
    if (r->failed || at < 0)
        return NULL;
    if (at % size || count > (r->bytes - at) / size) {
        fail(r, "%s: expected %lld elements at byte %lld, found %lld bytes in all", what, (long long)count,
             (long long)at, (long long)r->bytes);
        return NULL;
    }
    return r->blob + at;
}

static void *make(reader *r, int64_t count, size_t size)
{
    void *made = calloc(count > 0 ? (size_t)count : 1, size);
    if (!made)
        fail(r, "not enough memory");
    return made;
}

static int64_t lines(int64_t floats) { return (floats + NT_LINE - 1) / NT_LINE; }

static int64_t groups(const value *v, int64_t examples) { return v->merged ? 1 : examples; }
static int64_t positions(const value *v, int64_t examples) { return v->merged ? v->positions * examples : v->positions; }
static int64_t pitch(const nt_engine *e, const value *v) { return lines(positions(v, e->batch)) * NT_LINE; }
static int64_t floats(const nt_engine *e, const value *v)
{
    return groups(v, e->batch) * v->channels * pitch(e, v);
}

static void read_values(reader *r, nt_engine *e)
{
    e->value_count = word(r, "values", 0, r->words);
    e->values = make(r, e->value_count, sizeof(value));
    for (int64_t i = 0; i < e->value_count && !r->failed; i++) {
        value *v = &e->values[i];
        v->at = word(r, "value: place", 0, e->floats);
        v->channels = word(r, "value: channels", 1, MOST);
        v->positions = word(r, "value: positions", 1, MOST);
        v->merged = word(r, "value: merged", 0, 1);
        if (r->failed)
            return;
        if (v->at % NT_LINE || (double)e->batch * (double)v->channels * ((double)v->positions + NT_LINE) > 1e15 ||
            floats(e, v) > e->floats - v->at)
            fail(r, "value %lld: does not fit into the working memory", (long long)i);
    }
}

static void read_geometry(reader *r, nt_geometry *g, int64_t row)
{
    int64_t *const fields[] = {&g->in_h,     &g->in_w,     &g->out_h,    &g->out_w, &g->kernel_h,
                               &g->kernel_w, &g->stride_h, &g->stride_w, &g->pad_h, &g->pad_w};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        *fields[i] = word(r, "geometry", i < 8 ? 1 : 0, i < 4 ? 1 << 20 : 1 << 12);
    g->shared = word(r, "geometry: shared", 0, 1);
    g->tile = row < NT_TILE ? row : NT_TILE;
    if (r->failed)
        return;
    if (g->shared && (g->stride_h != 1 || g->stride_w != 1 || g->out_w % NT_LINE || NT_TILE % g->out_w))
        fail(r, "geometry: planes cannot be shared");
}

static void expect_geometry(reader *r, const nt_geometry *g, const value *in, const value *out)
{
    if (r->failed)
        return;
    if (in->positions != g->in_h * g->in_w || out->positions != g->out_h * g->out_w || in->merged || out->merged)
        fail(r, "geometry: does not belong to its values");
}

/* Read a block and check every index in it, so that running needs no checks. */
static void read_block(reader *r, block *b, const nt_geometry *g, int64_t in_channels, int64_t out_channels)
{
    b->channel = word(r, "block: first channel", 0, in_channels - 1);
    b->channels = word(r, "block: channels", 0, in_channels - b->channel);
    b->rows = word(r, "block: rows", 0, out_channels);
    const int64_t count = word(r, "block: connections", 0, MOST);
    b->weights = numbers(r, "block: weights", count, sizeof(float), 0);
    b->offsets = numbers(r, "block: offsets", count, sizeof(uint16_t), 0);
    b->counts = numbers(r, "block: counts", b->rows, sizeof(uint16_t), 0);
    b->which = numbers(r, "block: rows", b->rows, sizeof(uint16_t), 0);
    b->starts = make(r, b->rows + 1, sizeof(int64_t));
    if (r->failed)
        return;
    for (int64_t i = 0; i < b->rows; i++) {
        b->starts[i + 1] = b->starts[i] + b->counts[i];
        if (b->which[i] >= out_channels)
            return fail(r, "block: row %lld of %lld", (long long)b->which[i], (long long)out_channels);
    }
    if (b->starts[b->rows] != count)
        return fail(r, "block: expected %lld connections, found %lld", (long long)count,
                    (long long)b->starts[b->rows]);
    const int64_t end = nt_channel_floats(g) * b->channels * (int64_t)sizeof(float) - g->tile * (int64_t)sizeof(float);
    for (int64_t k = 0; k < count; k++) {
        const int64_t at = (int64_t)b->offsets[k] * NT_UNIT;
        if (at > end || at % (NT_LINE * (int64_t)sizeof(float)))
            return fail(r, "block: connection %lld lies outside of its panel", (long long)k);
    }
}

static void read_product(reader *r, nt_engine *e, op *o, const value *in, const value *out)
{
    read_geometry(r, &o->geometry, pitch(e, out));
    const int pointwise = word(r, "product: pointwise", 0, 1) != 0;
    o->scale = numbers(r, "product: scale", in->channels, sizeof(float), 1);
    o->shift = numbers(r, "product: shift", in->channels, sizeof(float), 1);
    o->pre_relu = word(r, "product: pre relu", 0, 1);
    o->bias = numbers(r, "product: bias", out->channels, sizeof(float), 1);
    o->residual = word(r, "product: residual", -1, e->value_count - 1);
    o->relu = word(r, "product: relu", 0, 1);
    o->chunk = word(r, "product: chunk", 1, MOST);
    o->block_count = word(r, "product: blocks", 1, in->channels + 1);
    if (r->failed)
        return;
    if (!o->scale != !o->shift)
        return fail(r, "product: scale without shift");
    if (pointwise) {
        const nt_geometry one = {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, o->geometry.tile};
        if (memcmp(&o->geometry, &one, sizeof one) || in->positions != out->positions || in->merged != out->merged)
            return fail(r, "product: not pointwise");
        o->geometry.in_h = 0; /* set when running: one row of all positions */
    } else
        expect_geometry(r, &o->geometry, in, out);
    if (o->residual >= 0) {
        const value *v = &e->values[o->residual];
        if (v->channels != out->channels || v->positions != out->positions || v->merged != out->merged)
            return fail(r, "product: the residual has another shape");
    }
    o->blocks = make(r, o->block_count, sizeof(block));
    for (int64_t i = 0; i < o->block_count && !r->failed; i++) {
        read_block(r, &o->blocks[i], &o->geometry, in->channels, out->channels);
        const int64_t need = nt_channel_floats(&o->geometry) * o->blocks[i].channels;
        if (need > e->panel_floats)
            e->panel_floats = need;
    }
    if (!pointwise && nt_scratch_floats(&o->geometry) > e->scratch_floats)
        e->scratch_floats = nt_scratch_floats(&o->geometry);
    const int64_t ends[] = {0, o->block_count - 1};
    for (int i = 0; i < 2 && !r->failed; i++) /* so that each row gets its bias, and its residual */
        if (o->blocks[ends[i]].rows != out->channels)
            fail(r, "product: expected all rows in the first and in the last block");
}

static int same_shape(const value *a, const value *b)
{
    return a->channels == b->channels && a->positions == b->positions && a->merged == b->merged;
}

static void read_side(reader *r, const op *o, side *s, const value *v)
{
    s->channel = word(r, "move: channel", 0, v->channels - 1);
    s->position = word(r, "move: position", 0, v->positions - 1);
    int64_t channel = s->channel, position = s->position;
    for (int i = 0; i < 3; i++) {
        s->channel_steps[i] = word(r, "move: step", 0, MOST);
        s->position_steps[i] = word(r, "move: step", 0, MOST);
        channel += (o->loops[i] - 1) * s->channel_steps[i];
        position += (o->loops[i] - 1) * s->position_steps[i];
    }
    if (!r->failed && (channel >= v->channels || position >= v->positions))
        fail(r, "move: leaves its value");
}

static void read_move(reader *r, op *o, const value *in, const value *out)
{
    for (int i = 0; i < 3; i++)
        o->loops[i] = word(r, "move: loop", 1, MOST);
    read_side(r, o, &o->from, in);
    read_side(r, o, &o->to, out);
}

static void read_attention(reader *r, nt_engine *e, op *o, const value *in, const value *out)
{
    o->keys = word(r, "attention: keys", 0, e->value_count - 1);
    o->values = word(r, "attention: values", 0, e->value_count - 1);
    o->heads = word(r, "attention: heads", 1, in->channels);
    o->shared = word(r, "attention: heads that share keys", 1, in->channels);
    o->causal = word(r, "attention: causal", 0, 1);
    if (r->failed)
        return;
    const value *k = &e->values[o->keys], *v = &e->values[o->values];
    const int64_t size = in->channels / o->heads;
    if (!same_shape(in, out) || !same_shape(k, v) || in->merged != k->merged || in->positions != k->positions ||
        size * o->heads != in->channels || k->channels * o->shared != in->channels || o->heads % o->shared ||
        o->out == o->keys || o->out == o->values)
        return fail(r, "attention: values");
    o->table = numbers(r, "attention: cosines", size / 2 * in->positions, sizeof(float), 1);
    o->sine = numbers(r, "attention: sines", size / 2 * in->positions, sizeof(float), 1);
    if (!r->failed && (!o->table != !o->sine || (o->table && size % 2)))
        fail(r, "attention: positions");
    const int64_t need = nt_attention_floats(size, in->positions);
    if (need > e->scratch_floats)
        e->scratch_floats = need;
}

static void read_op(reader *r, nt_engine *e, op *o)
{
    o->kind = word(r, "op", 0, KINDS - 1);
    o->in = word(r, "op: input", 0, e->value_count - 1);
    o->out = word(r, "op: output", 0, e->value_count - 1);
    o->residual = -1;
    if (r->failed)
        return;
    if (o->in == o->out && o->kind != INPUT && o->kind != OUTPUT && o->kind != AFFINE && o->kind != FILL)
        return fail(r, "op %lld: reads what it writes", (long long)o->kind);
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    switch (o->kind) {
    case PRODUCT:
        read_product(r, e, o, in, out);
        break;
    case AFFINE:
        o->scale = numbers(r, "affine: scale", in->channels, sizeof(float), 0);
        o->shift = numbers(r, "affine: shift", in->channels, sizeof(float), 0);
        o->relu = word(r, "affine: relu", 0, 1);
        /* fall through */
    case ADD:
    case MULTIPLY:
        if (!same_shape(in, out))
            fail(r, "op %lld: its values have different shapes", (long long)o->kind);
        break;
    case INPUT:
        if (e->input_floats)
            fail(r, "input: given twice");
        e->input_floats = in->channels * in->positions;
        break;
    case OUTPUT:
        o->index = word(r, "output: member", 0, e->outputs - 1);
        if (in->channels * in->positions != e->output_floats)
            fail(r, "output: expected %lld numbers", (long long)e->output_floats);
        break;
    case MAX_POOL:
    case AVERAGE_POOL:
        read_geometry(r, &o->geometry, NT_LINE);
        expect_geometry(r, &o->geometry, in, out);
        if (!r->failed && in->channels != out->channels)
            fail(r, "pool: channels");
        break;
    case GLOBAL_AVERAGE:
        if (in->channels != out->channels || !out->merged || out->positions != 1)
            fail(r, "global average: values");
        break;
    case MOVE:
        read_move(r, o, in, out);
        break;
    case FUNCTION:
        o->index = word(r, "function", 0, NT_FUNCTIONS - 1);
        if (!same_shape(in, out))
            fail(r, "function: its values have different shapes");
        break;
    case NORM:
        o->scale = numbers(r, "norm: weight", in->channels, sizeof(float), 0);
        o->bias = numbers(r, "norm: bias", in->channels, sizeof(float), 1);
        o->eps = (float)word(r, "norm: eps", 0, (int64_t)1 << 50) * 1e-15f;
        if (!same_shape(in, out))
            fail(r, "norm: its values have different shapes");
        break;
    case ATTENTION:
        read_attention(r, e, o, in, out);
        break;
    case EMBEDDING:
        o->rows = word(r, "embedding: rows", 1, MOST);
        if (!r->failed && o->rows > MOST / out->channels)
            fail(r, "embedding: too large");
        o->table = numbers(r, "embedding: table", o->rows * out->channels, sizeof(float), 0);
        if (in->channels != 1 || in->positions != out->positions || in->merged != out->merged)
            fail(r, "embedding: values");
        break;
    case FILL:
        o->index = word(r, "fill: position", 0, out->positions - 1);
        o->rows = word(r, "fill: positions", 1, out->positions - o->index);
        if (!r->failed && o->rows > MOST / out->channels)
            fail(r, "fill: too large");
        o->table = numbers(r, "fill: table", o->rows * out->channels, sizeof(float), 0);
        break;
    }
}

enum { MAGIC = 0x4e544350, VERSION = 1 };

nt_engine *nt_open(const int64_t *code, int64_t words, const uint8_t *blob, int64_t bytes, char *error,
                   int64_t error_bytes)
{
    reader r = {code, words, 0, blob, bytes, error, error_bytes, 0};
    nt_engine *e = make(&r, 1, sizeof *e);
    if (!e)
        return NULL;
    word(&r, "magic", MAGIC, MAGIC);
    word(&r, "version", VERSION, VERSION);
    e->batch = word(&r, "batch", 1, 1 << 20);
    e->floats = word(&r, "working memory", 0, (int64_t)1 << 40);
    e->outputs = word(&r, "members", 1, 1 << 20);
    e->output_floats = word(&r, "numbers of a member", 1, MOST);
    read_values(&r, e);
    e->op_count = word(&r, "ops", 0, words);
    e->ops = make(&r, e->op_count, sizeof(op));
    for (int64_t i = 0; i < e->op_count && !r.failed; i++)
        read_op(&r, e, &e->ops[i]);
    if (!r.failed && r.at != words)
        fail(&r, "the program goes on after its last op");
    if (!r.failed && !e->input_floats)
        fail(&r, "the program reads no input");
    e->kernels = choose();
    if (!r.failed)
        return e;
    nt_close(e);
    return NULL;
}

void nt_close(nt_engine *e)
{
    if (!e)
        return;
    for (int64_t i = 0; e->ops && i < e->op_count; i++) {
        for (int64_t b = 0; e->ops[i].blocks && b < e->ops[i].block_count; b++)
            free(e->ops[i].blocks[b].starts);
        free(e->ops[i].blocks);
    }
    free(e->ops);
    free(e->values);
    free(e);
}

/* Each thread's panel and scratch memory. */
static int64_t own_floats(const nt_engine *e)
{
    return (lines(e->panel_floats) + lines(e->scratch_floats)) * NT_LINE;
}

int64_t nt_memory(const nt_engine *e, int64_t threads)
{
    return threads * (e->floats + own_floats(e)) * (int64_t)sizeof(float);
}

/* ---------------------------------------------------------------- running */

/* One of the threads that compute a batch of the program together. */
typedef struct {
    const nt_engine *engine;
    const float *input;             /* of all examples */
    float *output;                  /* of all examples */
    float *memory, *panel;          /* the batch's; this thread's */
    int64_t all, first, examples;   /* of all examples, those of this batch */
    int64_t thread, threads;
} worker;

/* A channel of an example. */
static float *row_of(const worker *w, const value *v, int64_t example, int64_t channel)
{
    const int64_t step = pitch(w->engine, v);
    return w->memory + v->at + (v->merged ? channel * step + example * v->positions
                                          : (example * v->channels + channel) * step);
}

static int64_t share(int64_t count, int64_t thread, int64_t threads) { return count * thread / threads; }

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* The row at which a part of a block's rows begins, parts having about equally many connections. */
static int64_t split(const block *b, int64_t part, int64_t parts)
{
    if (part == 0 || part == parts)
        return part ? b->rows : 0;
    /* A row costs about as much as four connections by itself. */
    const int64_t wanted = (b->starts[b->rows] + 4 * b->rows) * part / parts;
    int64_t low = 0, high = b->rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (b->starts[middle] + 4 * middle < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void wait_for_others(void)
{
#ifdef _OPENMP
#pragma omp barrier
#endif
}

static void product(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const int64_t in_pitch = pitch(e, in), out_pitch = pitch(e, out), all = positions(out, w->examples);
    const int64_t tiles = (all + NT_TILE - 1) / NT_TILE, tasks = tiles * groups(out, w->examples);
    /* Few tiles are divided by rows, too. A block has an order of rows of its own, so all wait for each other
       before the next. What a row gives does not depend on who computes it. */
    const int64_t parts = tasks >= 4 * w->threads ? 1 : w->threads / common_divisor(tasks, w->threads);
    const int64_t items = tasks * parts, end = share(items, w->thread + 1, w->threads);
    const int64_t chunk = parts > 1 ? items : o->chunk;
    nt_geometry g = o->geometry;
    if (!g.in_h) {
        g.in_h = g.out_h = 1;
        g.in_w = g.out_w = all;
    }
    for (int64_t from = share(items, w->thread, w->threads); from < end; from += chunk) {
        const int64_t to = from + chunk < end ? from + chunk : end;
        for (int64_t b = 0; b < o->block_count; b++) {
            const block *k = &o->blocks[b];
            int64_t built = -1;
            for (int64_t item = from; item < to; item++) {
                const int64_t task = item / parts, group = task / tiles, begin = task % tiles * NT_TILE;
                const int64_t count = all - begin < NT_TILE ? all - begin : NT_TILE;
                if (task != built) {
                    const nt_panel p = {w->memory + in->at + group * in->channels * in_pitch,
                                        in_pitch,
                                        o->scale,
                                        o->shift,
                                        (int)o->pre_relu,
                                        k->channel,
                                        k->channels,
                                        begin,
                                        count,
                                        w->panel,
                                        w->panel + lines(e->panel_floats) * NT_LINE};
                    e->kernels->panel(&g, &p);
                    built = task;
                }
                const int64_t first = split(k, item % parts, parts), last = split(k, item % parts + 1, parts);
                const int64_t at = group * out->channels * out_pitch + begin;
                const nt_rows t = {k->weights + k->starts[first],
                                   k->offsets + k->starts[first],
                                   k->counts + first,
                                   k->which + first,
                                   last - first,
                                   (const char *)w->panel,
                                   w->memory + out->at + at,
                                   o->residual < 0 ? NULL : w->memory + e->values[o->residual].at + at,
                                   o->bias,
                                   out_pitch,
                                   (int)lines(count),
                                   b == 0,
                                   b == o->block_count - 1,
                                   (int)o->relu};
                e->kernels->rows(&t);
            }
            if (parts > 1)
                wait_for_others();
        }
    }
}

/* Ops on whole rows: each thread takes some of them. */
static void by_rows(const worker *w, const op *o)
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

static void pool(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const nt_geometry *g = &o->geometry;
    const int64_t rows = w->examples * in->channels, in_pitch = pitch(e, in), out_pitch = pitch(e, out);
    for (int64_t i = share(rows, w->thread, w->threads); i < share(rows, w->thread + 1, w->threads); i++) {
        const float *from = w->memory + in->at + i * in_pitch;
        float *to = w->memory + out->at + i * out_pitch;
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
static void average(const worker *w, const op *o)
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

static void move(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const side *f = &o->from, *t = &o->to;
    const int64_t in_pitch = pitch(e, in), out_pitch = pitch(e, out), items = w->examples * o->loops[0];
    const int64_t in_step = f->channel_steps[2] * in_pitch + f->position_steps[2];
    const int64_t out_step = t->channel_steps[2] * out_pitch + t->position_steps[2];
    for (int64_t item = share(items, w->thread, w->threads); item < share(items, w->thread + 1, w->threads); item++) {
        const int64_t b = item / o->loops[0], i = item % o->loops[0];
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

static void normalise(const worker *w, const op *o)
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

static void attention(const worker *w, const op *o)
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
static void look_up(const worker *w, const op *o)
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

static void fill(const worker *w, const op *o)
{
    const value *out = &w->engine->values[o->out];
    const int64_t items = w->examples * out->channels;
    for (int64_t i = share(items, w->thread, w->threads); i < share(items, w->thread + 1, w->threads); i++)
        memcpy(row_of(w, out, i / out->channels, i % out->channels) + o->index,
               o->table + i % out->channels * o->rows, (size_t)o->rows * sizeof(float));
}

/* Between the caller's arrays, (examples, channels, positions), and values. */
static void across(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *v = &e->values[o->in];
    const int64_t n = v->positions, rows = w->examples * v->channels;
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

static void run_op(const worker *w, const op *o)
{
    switch (o->kind) {
    case PRODUCT:
        product(w, o);
        break;
    case MAX_POOL:
    case AVERAGE_POOL:
        pool(w, o);
        break;
    case GLOBAL_AVERAGE:
        average(w, o);
        break;
    case MOVE:
        move(w, o);
        break;
    case NORM:
        normalise(w, o);
        break;
    case ATTENTION:
        attention(w, o);
        break;
    case EMBEDDING:
        look_up(w, o);
        break;
    case FILL:
        fill(w, o);
        break;
    case INPUT:
    case OUTPUT:
        across(w, o);
        break;
    default:
        by_rows(w, o);
    }
}

/* Compute one batch of the program; all of its threads call this. */
static void run_batch(worker w, int64_t batch)
{
    const nt_engine *e = w.engine;
    w.first = batch * e->batch;
    w.examples = w.all - w.first < e->batch ? w.all - w.first : e->batch;
    for (int64_t i = 0; i < e->op_count; i++) {
        run_op(&w, &e->ops[i]);
        if (w.threads > 1)
            wait_for_others();
    }
}

/* As many batches as come out even are computed by a thread each; all threads share the rest. */
static void run_thread(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t thread,
                       int64_t threads, float *memory)
{
    const int64_t each = e->floats + own_floats(e), batches = (examples + e->batch - 1) / e->batch;
    const int64_t even = batches / threads * threads;
    float *own = memory + thread * each;
    for (int64_t batch = thread; batch < even; batch += threads) {
        const worker w = {e, input, output, own, own + e->floats, examples, 0, 0, 0, 1};
        run_batch(w, batch);
    }
    wait_for_others();
    for (int64_t batch = even; batch < batches; batch++) {
        const worker w = {e, input, output, memory, own + e->floats, examples, 0, 0, thread, threads};
        run_batch(w, batch);
    }
}

int nt_run(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t threads, void *memory)
{
    if (!e || !input || !output || !memory || examples < 1 || threads < 1 ||
        (uintptr_t)memory % (NT_LINE * sizeof(float)))
        return -1;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    run_thread(e, input, output, examples, omp_get_thread_num(), omp_get_num_threads(), memory);
#else
    run_thread(e, input, output, examples, 0, 1, memory);
#endif
    return 0;
}
