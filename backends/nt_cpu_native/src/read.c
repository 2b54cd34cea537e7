#include "reader.h"

#include <stdlib.h>
#include <string.h>

static void read_values(reader *r, nt_engine *e)
{
    e->value_count = word(r, "values", 0, MOST_VALUES);
    if (e->floats % NT_LINE)
        fail(r, "working memory: expected whole lines of %d numbers, found %lld", NT_LINE, (long long)e->floats);
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
        o->out == o->keys || o->out == o->values) {
        fail(r, "attention: values");
        return;
    }
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
    const int one = o->kind == INPUT || o->kind == OUTPUT || o->kind == FILL;
    if (o->in == o->out ? !one && o->kind != AFFINE : one) {
        fail(r, "op %lld: reads value %lld and writes %lld", (long long)o->kind, (long long)o->in, (long long)o->out);
        return;
    }
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

static int reads(const op *o, int64_t value)
{
    return o->in == value || (o->kind == PRODUCT && o->residual == value) ||
           (o->kind == ATTENTION && (o->keys == value || o->values == value));
}

/* Let a single product that alone reads the input read the caller's array: written by one thread and read by all,
   a copy costs more than it is worth. */
static void skip_copy(nt_engine *e)
{
    if (e->op_count < 2 || e->ops[0].kind != INPUT || e->ops[1].kind != PRODUCT || !e->ops[1].single)
        return;
    const int64_t value = e->ops[0].in;
    if (e->ops[1].residual == value)
        return;
    for (int64_t i = 1; i < e->op_count; i++)
        if (reads(&e->ops[i], value) != (i == 1) || e->ops[i].out == value)
            return;
    e->ops[1].direct = 1;
    memmove(e->ops, e->ops + 1, (size_t)(e->op_count - 1) * sizeof(op));
    e->op_count--;
}

#define MOST_MEMORY ((int64_t)1 << 40) /* numbers */

nt_engine *nt_open(const int64_t *code, int64_t words, const uint8_t *blob, int64_t bytes, char *error,
                   int64_t error_bytes)
{
    reader r = {code, words, 0, blob, bytes, error, error_bytes, 0, 0, 0, {0}};
    nt_engine *e = make(&r, 1, sizeof *e);
    if (!e)
        return NULL;
    word(&r, "magic", NT_MAGIC, NT_MAGIC);
    word(&r, "version", NT_VERSION, NT_VERSION);
    e->batch = word(&r, "batch", 1, 1 << 20);
    e->floats = word(&r, "working memory", 0, MOST_MEMORY);
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
    if (!r.failed && own_floats(e) > MOST_MEMORY)
        fail(&r, "working memory: expected at most %lld numbers for each thread", (long long)MOST_MEMORY);
    if (!r.failed)
        expect_flow(&r, e);
    e->kernels = nt_choose();
    if (!r.failed) {
        skip_copy(e);
        return e;
    }
    nt_close(e);
    return NULL;
}

void nt_close(nt_engine *e)
{
    if (!e)
        return;
    for (int64_t i = 0; e->ops && i < e->op_count; i++) {
        for (int64_t j = 0; e->ops[i].groups && j < e->ops[i].group_count; j++) {
            row_group *g = &e->ops[i].groups[j];
            for (int64_t b = 0; g->blocks && b < g->count; b++)
                free(g->blocks[b].starts);
            free(g->blocks);
        }
        free(e->ops[i].groups);
        free(e->ops[i].sources);
    }
    free(e->ops);
    free(e->values);
    free(e);
}

void nt_sizes(const nt_engine *e, int64_t *sizes)
{
    sizes[0] = e->input_floats;
    sizes[1] = e->outputs;
    sizes[2] = e->output_floats;
}

int64_t nt_memory(const nt_engine *e, int64_t threads)
{
    const int64_t each = e->floats + own_floats(e);
    if (threads < 1 || threads > NT_THREADS || each > INT64_MAX / (int64_t)sizeof(float) / threads)
        return -1;
    return threads * each * (int64_t)sizeof(float);
}
