#include "program.h"

#include <stddef.h>

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* The row at which a part of a block's rows begins. A part has the same rows in every block of a product. */
static int64_t split(const block *b, int64_t part, int64_t parts) { return b->sets[share(SETS, part, parts)]; }

/* A product with one position: each thread takes some rows. */
static void single_product(const worker *w, const op *o)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const block *k = o->groups->blocks;
    const int64_t step = o->direct ? 1 : pitch(e, in);
    const float *from = o->direct ? w->input + w->first * in->channels : w->memory + in->at;
    for (int64_t i = 0; i < k->channels; i++) {
        const int64_t c = k->channel + i;
        float x = from[c * step];
        x = o->scale ? o->scale[c] * x + o->shift[c] : x;
        w->panel[i] = o->pre_relu && x < 0.0f ? 0.0f : x;
    }
    const int64_t first = split(k, w->thread, w->threads), last = split(k, w->thread + 1, w->threads);
    const nt_rows t = {k->weights + k->starts[first],
                       k->offsets + k->starts[first],
                       k->counts + first,
                       k->which + first,
                       last - first,
                       (const char *)w->panel,
                       w->memory + out->at,
                       o->residual < 0 ? NULL : w->memory + e->values[o->residual].at,
                       o->bias,
                       pitch(e, out),
                       1,
                       1,
                       1,
                       (int)o->relu};
    e->kernels->dots(&t);
}

/* Some items of a product: tiles, of which each is divided by rows into parts. */
typedef struct {
    const nt_geometry *geometry;
    const row_group *rows;
    int64_t from, to, tasks, parts, tiles, all;
} part;

/* Fill this thread's panel for a tile: from one example, or from several small images. */
static void build_panel(const worker *w, const op *o, const nt_geometry *g, const block *k, int64_t group,
                        int64_t begin, int64_t count)
{
    const nt_engine *e = w->engine;
    const value *in = &e->values[o->in], *out = &e->values[o->out];
    const int images = out->merged && o->geometry.in_h; /* a pointwise product has one row of all positions */
    const int64_t step = in->merged ? in->positions : in->channels * pitch(e, in);
    nt_panel p = {.in = row_of(w, in, group, 0),
                  .pitch = pitch(e, in),
                  .scale = o->scale,
                  .shift = o->shift,
                  .relu = (int)o->pre_relu,
                  .channel = k->channel,
                  .channels = k->channels,
                  .begin = begin,
                  .count = count,
                  .tail = lines(count) * NT_LINE - count,
                  .panel = w->panel,
                  .scratch = w->panel + lines(e->panel_floats) * NT_LINE};
    if (!images) {
        e->kernels->panel(g, &p);
        return;
    }
    if (o->sources) {
        p.in = row_of(w, in, begin / out->positions, 0);
        p.table = o->sources;
        p.images = (count + out->positions - 1) / out->positions;
        p.image_step = step;
        e->kernels->panel(g, &p);
        return;
    }
    for (int64_t done = 0; done < count; done += p.count) {
        const int64_t at = begin + done, left = out->positions - at % out->positions;
        p.in = row_of(w, in, at / out->positions, 0);
        p.begin = at % out->positions;
        p.count = left < count - done ? left : count - done;
        p.tail = done + p.count < count ? 0 : lines(count) * NT_LINE - count;
        p.panel = w->panel + done;
        e->kernels->panel(g, &p);
    }
}

/* Add up the products of one group of rows, block by block. The block is the outer loop, because its weights are
   then read from memory once for all tiles; the sums of the tiles between stay in the second-level cache. */
static void add_blocks(const worker *w, const op *o, const part *p)
{
    const nt_engine *e = w->engine;
    const value *out = &e->values[o->out];
    const int64_t out_pitch = pitch(e, out);
    for (int64_t b = 0; b < p->rows->count; b++) {
        const block *k = &p->rows->blocks[b];
        int64_t built = -1;
        for (int64_t item = p->from; item < p->to; item++) {
            const int64_t task = item % p->tasks, group = task / p->tiles, rows = item / p->tasks,
                          begin = task % p->tiles * NT_TILE;
            const int64_t count = p->all - begin < NT_TILE ? p->all - begin : NT_TILE;
            if (task != built) { /* all parts of a tile's rows read the same panel */
                build_panel(w, o, p->geometry, k, group, begin, count);
                built = task;
            }
            const int64_t first = split(k, rows, p->parts), last = split(k, rows + 1, p->parts);
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
                               b == p->rows->count - 1,
                               (int)o->relu};
            e->kernels->rows(&t);
        }
    }
}

/* Into how many parts the rows of every tile are divided: one where each thread has tiles enough of its own. Where
   they are few, each thread takes its rows of all of them: it fetches and writes its own weights and channels, and
   shares with others only what it reads. What a row gives does not depend on who computes it. */
static int64_t parts_of(const worker *w, int64_t tasks)
{
    if (tasks >= 8 * w->threads)
        return 1;
    return w->threads <= SETS ? w->threads : w->threads / common_divisor(tasks, w->threads);
}

void run_product(const worker *w, const op *o)
{
    if (o->single) {
        single_product(w, o);
        return;
    }
    const value *out = &w->engine->values[o->out];
    const int64_t all = positions(out, w->examples);
    const int64_t tiles = (all + NT_TILE - 1) / NT_TILE, tasks = tiles * groups(out, w->examples);
    const int64_t parts = parts_of(w, tasks);
    const int64_t items = tasks * parts, end = share(items, w->thread + 1, w->threads);
    nt_geometry g = o->geometry;
    if (!g.in_h) {
        g.in_h = g.out_h = 1;
        g.in_w = g.out_w = all;
    }
    const int64_t begin = share(items, w->thread, w->threads);
    for (const row_group *rows = o->groups; rows < o->groups + o->group_count; rows++)
        for (int64_t from = begin; from < end; from += o->chunk) {
            const part p = {&g, rows, from, from + o->chunk < end ? from + o->chunk : end, tasks, parts, tiles, all};
            add_blocks(w, o, &p);
        }
}
