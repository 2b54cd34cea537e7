/* Whether a program reads only what it wrote. Each value is written once, whole, before it is read, and no other
   value is written over it as long as it is read; so nothing that lay in memory before can become an answer. */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

enum { BITS = 64 };

/* A value's life: from its first writer to its last reader, as numbers of ops. */
typedef struct {
    int64_t born, last, written; /* born: -1 before; written: elements, of one example */
    int64_t rank;                /* among all values, by their places */
    uint64_t *parts;             /* a bit for each element, if the first elements are not the first written */
} life;

typedef struct {
    int64_t at, index;
} place;

static int64_t elements(const value *v) { return v->channels * v->positions; }

/* An op that adds to its output, or changes it where it lies, reads it, too. */
static int reads_output(const op *o)
{
    return o->kind == ADD || o->kind == MULTIPLY || o->kind == OUTPUT || (o->kind == AFFINE && o->in == o->out);
}

enum { MOST_READ = 5 };

/* The values that an op reads; -1: none. */
static void reads(const op *o, int64_t *found)
{
    const int none = o->kind == INPUT || o->kind == FILL;
    found[0] = none ? -1 : o->in;
    found[1] = reads_output(o) ? o->out : -1;
    found[2] = o->kind == PRODUCT ? o->residual : -1;
    found[3] = o->kind == ATTENTION ? o->keys : -1;
    found[4] = o->kind == ATTENTION ? o->values : -1;
}

/* Mark some elements of a value that stand side by side. */
static void mark(reader *r, life *l, int64_t at, int64_t count)
{
    while (count > 0 && !r->failed) {
        const int64_t bit = at % BITS, n = count < BITS - bit ? count : BITS - bit;
        const uint64_t bits = (n == BITS ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << bit;
        if (l->parts[at / BITS] & bits)
            fail(r, "a value is written twice");
        l->parts[at / BITS] |= bits;
        at += n;
        count -= n;
    }
}

/* Three loops over a value's elements, from the shortest step to the longest. */
typedef struct {
    int64_t start, count[3], step[3];
} walk;

static void sort_loops(walk *k)
{
    for (int i = 0; i < 3; i++)
        if (k->count[i] == 1)
            k->step[i] = INT64_MAX; /* it is never made */
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2 - i; j++)
            if (k->step[j] > k->step[j + 1]) {
                const int64_t count = k->count[j], step = k->step[j];
                k->count[j] = k->count[j + 1], k->step[j] = k->step[j + 1];
                k->count[j + 1] = count, k->step[j + 1] = step;
            }
}

static walk writes(const op *o, const value *v)
{
    walk k = {o->index, {o->rows, v->channels, 1}, {1, v->positions, 0}};
    if (o->kind == MOVE) {
        k.start = o->to.channel * v->positions + o->to.position;
        for (int i = 0; i < 3; i++) {
            k.count[i] = o->loops[i];
            k.step[i] = o->to.channel_steps[i] * v->positions + o->to.position_steps[i];
        }
    }
    sort_loops(&k);
    return k;
}

/* Write a part of a value: bits are kept only for a part that does not continue those before it. */
static void write_part(reader *r, life *l, const op *o, const value *v)
{
    const walk k = writes(o, v);
    int64_t all = 1, run = 1, left = elements(v) - l->written;
    for (int i = 0; i < 3; i++) {
        if (k.count[i] > left / all) {
            fail(r, "a value is written twice");
            return;
        }
        run = run == all && (k.count[i] == 1 || k.step[i] == run) ? run * k.count[i] : run;
        all *= k.count[i];
    }
    const int64_t before = l->written;
    l->written += all;
    if (!l->parts && run == all && k.start == before)
        return;
    if (!l->parts) {
        l->parts = make(r, elements(v) / BITS + 1, sizeof *l->parts);
        if (r->failed)
            return;
        mark(r, l, 0, before);
    }
    const int64_t inner = k.step[0] == 1 || k.count[0] == 1 ? k.count[0] : 1, again = k.count[0] / inner;
    for (int64_t c = 0; c < k.count[2]; c++)
        for (int64_t b = 0; b < k.count[1]; b++)
            for (int64_t a = 0; a < again && !r->failed; a++)
                mark(r, l, k.start + a * k.step[0] + b * k.step[1] + c * k.step[2], inner);
}

/* Follow each value from op to op. */
static void follow(reader *r, const nt_engine *e, life *lives)
{
    uint8_t *served = make(r, e->outputs, 1);
    int64_t members = 0;
    for (int64_t i = 0; i < e->op_count && !r->failed; i++) {
        const op *o = &e->ops[i];
        int64_t read[MOST_READ];
        reads(o, read);
        for (int n = 0; n < MOST_READ && !r->failed; n++) {
            if (read[n] < 0)
                continue;
            if (lives[read[n]].written < elements(&e->values[read[n]]))
                fail(r, "op %lld: reads value %lld before all of it is written", (long long)i, (long long)read[n]);
            lives[read[n]].last = i;
        }
        life *l = &lives[o->out];
        l->last = i;
        if (o->kind == OUTPUT) {
            members += !served[o->index];
            served[o->index] = 1;
            continue;
        }
        if (r->failed || reads_output(o))
            continue;
        l->born = l->born < 0 ? i : l->born;
        if (o->kind == MOVE || o->kind == FILL)
            write_part(r, l, o, &e->values[o->out]);
        else if (l->written)
            fail(r, "a value is written twice");
        else
            l->written = elements(&e->values[o->out]);
    }
    if (!r->failed && members < e->outputs)
        fail(r, "output: %lld of %lld members get none", (long long)(e->outputs - members), (long long)e->outputs);
    free(served);
}

static int by_place(const void *a, const void *b)
{
    const int64_t x = ((const place *)a)->at, y = ((const place *)b)->at;
    return (x > y) - (x < y);
}

/* The nearest living value with a lower rank (by -1), or a higher one (by 1); -1 if there is none. */
static int64_t neighbour(const uint64_t *living, int64_t words, int64_t rank, int by)
{
    int64_t at = rank / BITS;
    const uint64_t lower = ((uint64_t)1 << rank % BITS) - 1;
    uint64_t bits = living[at] & (by < 0 ? lower : ~lower & ~((uint64_t)1 << rank % BITS));
    while (!bits) {
        at += by;
        if (at < 0 || at >= words)
            return -1;
        bits = living[at];
    }
    int64_t found = by < 0 ? BITS - 1 : 0;
    while (!(bits >> found & 1))
        found += by;
    return at * BITS + found;
}

/* No two values may lie in the same place while both live: at each birth the two nearest are compared. */
static void expect_apart(reader *r, const nt_engine *e, life *lives)
{
    const int64_t words = e->value_count / BITS + 1;
    place *order = make(r, e->value_count, sizeof *order);
    uint64_t *living = make(r, words, sizeof *living);
    for (int64_t i = 0; i < e->value_count && !r->failed; i++)
        order[i] = (place){e->values[i].at, i};
    if (!r->failed)
        qsort(order, (size_t)e->value_count, sizeof *order, by_place);
    for (int64_t i = 0; i < e->value_count && !r->failed; i++)
        lives[order[i].index].rank = i;
    for (int64_t i = 0; i < e->op_count && !r->failed; i++) {
        const op *o = &e->ops[i];
        const value *v = &e->values[o->out];
        const int64_t rank = lives[o->out].rank;
        if (lives[o->out].born == i) {
            const int64_t below = neighbour(living, words, rank, -1), above = neighbour(living, words, rank, 1);
            const value *low = below < 0 ? NULL : &e->values[order[below].index];
            if ((low && low->at + floats(e, low) > v->at) || (above >= 0 && v->at + floats(e, v) > order[above].at))
                fail(r, "op %lld: writes over a value that is still read", (long long)i);
            living[rank / BITS] |= (uint64_t)1 << rank % BITS;
        }
        int64_t used[MOST_READ + 1] = {o->out};
        reads(o, used + 1);
        for (int n = 0; n <= MOST_READ; n++)
            if (used[n] >= 0 && lives[used[n]].last == i)
                living[lives[used[n]].rank / BITS] &= ~((uint64_t)1 << lives[used[n]].rank % BITS);
    }
    free(order);
    free(living);
}

void expect_flow(reader *r, const nt_engine *e)
{
    life *lives = make(r, e->value_count, sizeof *lives);
    for (int64_t i = 0; i < e->value_count && lives; i++)
        lives[i].born = -1;
    if (!r->failed)
        follow(r, e, lives);
    if (!r->failed)
        expect_apart(r, e, lives);
    for (int64_t i = 0; i < e->value_count && lives; i++)
        free(lives[i].parts);
    free(lives);
}
