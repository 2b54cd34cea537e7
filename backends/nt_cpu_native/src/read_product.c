#include "reader.h"

#include <stdlib.h>
#include <string.h>

void read_geometry(reader *r, nt_geometry *g, int64_t row)
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

void expect_geometry(reader *r, const nt_geometry *g, const value *in, const value *out)
{
    if (r->failed)
        return;
    if (in->positions != g->in_h * g->in_w || out->positions != g->out_h * g->out_w || (g->shared && out->merged))
        fail(r, "geometry: does not belong to its values");
}

/* Find where a panel's lines begin that a connection may name: elsewhere, some of the floats of the last tile are
   not written. */
static void find_lines(reader *r, const nt_geometry *g)
{
    const int64_t all = (int64_t)sizeof r->lines * NT_LINE, plane = nt_plane_floats(g);
    memset(r->lines, 0, sizeof r->lines);
    for (int64_t at = 0; at < all && !g->shared; at += plane)
        r->lines[at / NT_LINE] = 1;
    for (int64_t channel = 0; channel < all && g->shared; channel += nt_channel_floats(g))
        for (int64_t kx = 0; kx < g->kernel_w && channel + kx * plane < all; kx++)
            for (int64_t ky = 0; ky < g->kernel_h && channel + kx * plane + ky * g->out_w < all; ky++)
                r->lines[(channel + kx * plane + ky * g->out_w) / NT_LINE] = 1;
}

/* Which of a product's rows have been met: as the first of its blocks divide them into sets, which threads take, all
   others must, too. */
typedef struct {
    uint32_t *set, *seen; /* of each row: its group and set; the last block that has it; 0: none */
    uint32_t group, blocks;
} owners;

static void expect_owners(reader *r, owners *o, const block *b, int first, int64_t channels)
{
    o->blocks++;
    for (uint32_t s = 0; s < SETS && !r->failed; s++)
        for (uint32_t i = b->sets[s]; i < b->sets[s + 1]; i++) {
            const uint32_t row = b->which[i], set = o->group * SETS + s + 1;
            if (row >= channels) {
                fail(r, "block: row %lld of %lld", (long long)row, (long long)channels);
                return;
            }
            if (o->seen[row] == o->blocks || o->set[row] != (first ? 0 : set)) {
                fail(r, "block: row %lld is in two places", (long long)row);
                return;
            }
            o->seen[row] = o->blocks;
            o->set[row] = set;
        }
}

/* Read a block and check every index in it, so that running needs no checks. */
static void read_block(reader *r, block *b, const op *o, owners *rows, int first, int64_t in_channels,
                       int64_t out_channels)
{
    const nt_geometry *g = &o->geometry;
    b->channel = word(r, "block: first channel", 0, in_channels - 1);
    b->channels = word(r, "block: channels", 0, in_channels - b->channel);
    b->rows = word(r, "block: rows", 0, out_channels);
    const int64_t count = word(r, "block: connections", 0, MOST);
    b->weights = numbers(r, "block: weights", count, sizeof(float), 0);
    b->offsets = numbers(r, "block: offsets", count, sizeof(uint16_t), 0);
    b->counts = numbers(r, "block: counts", b->rows, sizeof(uint32_t), 0);
    b->which = numbers(r, "block: rows", b->rows, sizeof(uint32_t), 0);
    b->sets = numbers(r, "block: sets", SETS + 1, sizeof(uint32_t), 0);
    if (r->failed)
        return;
    b->starts = make(r, b->rows + 1, sizeof(int64_t));
    if (r->failed)
        return;
    for (int i = 0; i <= SETS; i++)
        if (i ? b->sets[i] < b->sets[i - 1] : b->sets[i]) {
            fail(r, "block: sets of rows are out of order");
            return;
        }
    if (b->sets[SETS] != b->rows) {
        fail(r, "block: expected %lld rows in its sets", (long long)b->rows);
        return;
    }
    expect_owners(r, rows, b, first, out_channels);
    for (int64_t i = 0; i < b->rows; i++)
        b->starts[i + 1] = b->starts[i] + b->counts[i];
    if (r->failed)
        return;
    if (b->starts[b->rows] != count) {
        fail(r, "block: expected %lld connections, found %lld", (long long)count,
                    (long long)b->starts[b->rows]);
        return;
    }
    if (o->single) {
        for (int64_t k = 0; k < count; k++)
            if (b->offsets[k] >= b->channels) {
                fail(r, "block: connection %lld has no input", (long long)k);
                return;
            }
        return;
    }
    const int64_t end = nt_channel_floats(g) * b->channels * (int64_t)sizeof(float) - g->tile * (int64_t)sizeof(float);
    for (int64_t k = 0; k < count; k++) {
        const int64_t at = (int64_t)b->offsets[k] * NT_UNIT, line = NT_LINE * (int64_t)sizeof(float);
        if (at > end || at % line || !r->lines[at / line]) {
            fail(r, "block: connection %lld lies outside of its panel", (long long)k);
            return;
        }
    }
}

enum { TABLE = 1 << 17 }; /* floats: more than any panel that offsets of 16 bits can name */

/* For each float of a panel's channel: which float of the tile's images it is, or one behind them all. */
static void make_table(reader *r, nt_engine *e, op *o)
{
    const nt_geometry *g = &o->geometry;
    const int64_t inputs = g->in_h * g->in_w, outputs = g->out_h * g->out_w, end = nt_images(g) * inputs;
    if (end > TABLE || nt_channel_floats(g) > TABLE)
        return; /* they are built image by image */
    o->sources = make(r, nt_channel_floats(g), sizeof *o->sources);
    if (r->failed)
        return;
    int32_t *entry = o->sources;
    for (int64_t ky = 0; ky < g->kernel_h; ky++)
        for (int64_t kx = 0; kx < g->kernel_w; kx++)
            for (int64_t n = 0; n < g->tile; n++) {
                const int64_t y = n % outputs / g->out_w * g->stride_h + ky - g->pad_h;
                const int64_t x = n % g->out_w * g->stride_w + kx - g->pad_w;
                const int inside = y >= 0 && y < g->in_h && x >= 0 && x < g->in_w;
                *entry++ = (int32_t)(inside ? n / outputs * inputs + y * g->in_w + x : end);
            }
    if (end + 1 > e->scratch_floats)
        e->scratch_floats = end + 1;
}

static void read_group(reader *r, nt_engine *e, op *o, row_group *g, owners *rows, int64_t in_channels,
                       int64_t out_channels)
{
    g->count = word(r, "product: blocks", 1, o->single ? 1 : in_channels + 1);
    if (r->failed)
        return;
    g->blocks = make(r, g->count, sizeof(block));
    for (int64_t i = 0; i < g->count && !r->failed; i++) {
        read_block(r, &g->blocks[i], o, rows, i == 0, in_channels, out_channels);
        const int64_t need = (o->single ? 1 : nt_channel_floats(&o->geometry)) * g->blocks[i].channels;
        if (need > e->panel_floats)
            e->panel_floats = need;
    }
}

static void read_groups(reader *r, nt_engine *e, op *o, int64_t in_channels, int64_t out_channels)
{
    int64_t first = 0, last = 0;
    owners rows = {make(r, out_channels, sizeof(uint32_t)), make(r, out_channels, sizeof(uint32_t)), 0, 0};
    find_lines(r, &o->geometry);
    o->groups = make(r, o->group_count, sizeof(row_group));
    for (int64_t i = 0; i < o->group_count && !r->failed; i++, rows.group++) {
        const row_group *g = &o->groups[i];
        read_group(r, e, o, &o->groups[i], &rows, in_channels, out_channels);
        first += r->failed ? 0 : g->blocks[0].rows;
        last += r->failed ? 0 : g->blocks[g->count - 1].rows;
    }
    free(rows.set);
    free(rows.seen);
    if (first != out_channels || last != out_channels) /* so that each row gets its bias, and its residual */
        fail(r, "product: expected all rows in the first and in the last blocks");
}

void read_product(reader *r, nt_engine *e, op *o, const value *in, const value *out)
{
    read_geometry(r, &o->geometry, pitch(e, out));
    const int pointwise = word(r, "product: pointwise", 0, 1) != 0;
    o->single = word(r, "product: single", 0, 1);
    o->scale = numbers(r, "product: scale", in->channels, sizeof(float), 1);
    o->shift = numbers(r, "product: shift", in->channels, sizeof(float), 1);
    o->pre_relu = word(r, "product: pre relu", 0, 1);
    o->bias = numbers(r, "product: bias", out->channels, sizeof(float), 1);
    o->residual = word(r, "product: residual", -1, e->value_count - 1);
    o->relu = word(r, "product: relu", 0, 1);
    o->chunk = word(r, "product: chunk", 1, MOST);
    o->group_count = word(r, "product: groups of rows", 1, out->channels);
    if (r->failed)
        return;
    if (!o->scale != !o->shift) {
        fail(r, "product: scale without shift");
        return;
    }
    if (pointwise) {
        const nt_geometry one = {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, o->geometry.tile};
        if (memcmp(&o->geometry, &one, sizeof one) || in->positions != out->positions || in->merged != out->merged) {
            fail(r, "product: not pointwise");
            return;
        }
        o->geometry.in_h = 0; /* set when running: one row of all positions */
    } else
        expect_geometry(r, &o->geometry, in, out);
    if (o->single && (!pointwise || !in->merged || in->positions != 1 || e->batch != 1 || o->group_count != 1)) {
        fail(r, "product: not of one position");
        return;
    }
    if (o->residual >= 0) {
        const value *v = &e->values[o->residual];
        if (v->channels != out->channels || v->positions != out->positions || v->merged != out->merged) {
            fail(r, "product: the residual has another shape");
            return;
        }
    }
    read_groups(r, e, o, in->channels, out->channels);
    if (!pointwise && nt_scratch_floats(&o->geometry) > e->scratch_floats)
        e->scratch_floats = nt_scratch_floats(&o->geometry);
    if (!r->failed && !pointwise && out->merged && NT_TILE % out->positions == 0 && !nt_is_plain(&o->geometry))
        make_table(r, e, o);
}
