/* What a program is in memory, and what running it needs to know of it. */
#ifndef NT_PROGRAM_H
#define NT_PROGRAM_H

#include "engine.h"
#include "kernels/kernels.h"

enum { SETS = 12 }; /* into which a product's rows are divided */

/* A value: for each example (channels, positions), or for all examples one (channels, examples * positions).
   Rows are a pitch apart, a whole number of lines. */
typedef struct {
    int64_t at, channels, positions, merged; /* at: floats from the beginning of the working memory */
} value;

typedef struct {
    int64_t channel, channels;
    int64_t rows;
    const float *weights;
    const uint16_t *offsets;
    const uint32_t *counts, *which;
    const uint32_t *sets; /* where each of the sets begins into which a product's rows are divided */
    int64_t *starts; /* the first connection of each row, and the number of all */
} block;

/* Some rows of a product, few enough for their sums to stay in the cache while its blocks are added. */
typedef struct {
    block *blocks;
    int64_t count;
} row_group;

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
    int64_t pre_relu, single; /* single: there is one position in all */
    int64_t direct;           /* a single product reads the caller's array, where it lies */
    row_group *groups;
    int64_t group_count, chunk;
    int32_t *sources; /* of small images: what nt_panel calls a table; NULL: not needed */
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

static inline int64_t lines(int64_t floats) { return (floats + NT_LINE - 1) / NT_LINE; }

static inline int64_t groups(const value *v, int64_t examples) { return v->merged ? 1 : examples; }
static inline int64_t positions(const value *v, int64_t examples) { return v->merged ? v->positions * examples : v->positions; }
static inline int64_t pitch(const nt_engine *e, const value *v) { return lines(positions(v, e->batch)) * NT_LINE; }
static inline int64_t floats(const nt_engine *e, const value *v)
{
    return groups(v, e->batch) * v->channels * pitch(e, v);
}

/* Each thread's panel and scratch memory. */
static inline int64_t own_floats(const nt_engine *e)
{
    return (lines(e->panel_floats) + lines(e->scratch_floats)) * NT_LINE;
}

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
static inline float *row_of(const worker *w, const value *v, int64_t example, int64_t channel)
{
    const int64_t step = pitch(w->engine, v);
    return w->memory + v->at + (v->merged ? channel * step + example * v->positions
                                          : (example * v->channels + channel) * step);
}

static inline int64_t share(int64_t count, int64_t thread, int64_t threads) { return count * thread / threads; }

/* product.c */
void run_product(const worker *w, const op *o);

/* values.c: each op on its own values; threads take rows, positions or heads. */
void run_by_rows(const worker *w, const op *o);
void run_pool(const worker *w, const op *o);
void run_average(const worker *w, const op *o);
void run_norm(const worker *w, const op *o);
void run_attention(const worker *w, const op *o);
void run_embedding(const worker *w, const op *o);
void run_fill(const worker *w, const op *o);

/* moves.c: from one place to another, and from and to the caller's arrays. */
void run_move(const worker *w, const op *o);
void run_across(const worker *w, const op *o);

/* choose.c: the kernels of the best instruction set that the machine has. */
const nt_kernels *nt_choose(void);

#endif
