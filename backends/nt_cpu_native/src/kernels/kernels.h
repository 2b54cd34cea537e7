/* What is compiled once for each instruction set; choose.c takes a table of it at run time. */
#ifndef NT_KERNELS_H
#define NT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    NT_LINE = 16,       /* floats of one line: 64 bytes, a cache line */
    NT_TILE_LINES = 8,  /* lines of one tile: what a row of the sparse matrix updates in registers */
    NT_TILE = NT_LINE * NT_TILE_LINES,
    NT_UNIT = 8         /* bytes of one step of a stream's offsets */
};

/* Rows of a sparse matrix over one panel: out[row] = (first ? bias[row] : out[row]) + sum w * panel[offset],
   and in the last block + residual[row], then max(·, 0). */
typedef struct {
    const float *weights;     /* every connection's value, row by row */
    const uint16_t *offsets;  /* where in the panel its line begins, in units of NT_UNIT bytes */
    const uint32_t *counts;   /* connections of each row */
    const uint32_t *rows;     /* which row of the output each is */
    int64_t count;            /* how many rows */
    const char *panel;
    float *out;
    const float *residual;    /* NULL: none */
    const float *bias;        /* NULL: zeros; read in the first block */
    int64_t pitch;            /* floats between rows of the output, and of the residual */
    int lines;                /* 1 … NT_TILE_LINES */
    int first, last, relu;
} nt_rows;

/* Where a panel's lines come from. */
typedef struct {
    int64_t in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int64_t shared; /* kernel rows share planes: a plane for each kernel column, moved by whole rows */
    int64_t tile;   /* floats of a tile: whole lines, at most NT_TILE */
} nt_geometry;

typedef struct {
    const float *in; /* one example: (channels, pitch) */
    int64_t pitch;
    const float *scale, *shift; /* by channel, before everything; NULL: none */
    int relu;
    int64_t channel, channels; /* the block's first input channel, and how many */
    int64_t begin, count;      /* the tile's first output position in the example, and how many */
    int64_t tail;              /* zeros after them, up to a whole line */
    float *panel, *scratch;
    /* Several small images at once; table: NULL, or for each float of a panel's channel which of theirs it is,
       one behind the last of them for a zero. */
    const int32_t *table;
    int64_t images, image_step; /* how many there are; floats between them */
} nt_panel;

enum { NT_GELU, NT_SILU, NT_TANH, NT_SIGMOID, NT_FUNCTIONS };

/* Normalise each of count positions (a whole number of lines) over all channels. */
typedef struct {
    const float *in;
    float *out;
    int64_t pitch, channels, count;
    const float *weight, *bias; /* bias: NULL for the root mean square, without a mean */
    float eps;
} nt_norm;

/* One head of one example: softmax(q k / sqrt(size)) v. Rows are a pitch apart. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t pitch, size, length, causal;
    const float *cosine, *sine; /* (size / 2, length); NULL: no rotary positions */
    float *scratch;             /* nt_attention_floats, aligned to a line */
} nt_attention;

static inline int64_t nt_attention_floats(int64_t size, int64_t length)
{
    return (2 * size + NT_LINE) * ((length + NT_LINE - 1) / NT_LINE * NT_LINE);
}

typedef struct {
    const char *name;
    void (*rows)(const nt_rows *);
    /* As rows, of one position: the panel is one float for each input, and offsets count floats. */
    void (*dots)(const nt_rows *);
    void (*panel)(const nt_geometry *, const nt_panel *);
    /* out = act(scale * in + shift) on count floats */
    void (*affine)(float *out, const float *in, float scale, float shift, int relu, int64_t count);
    void (*add)(float *out, const float *in, int64_t count);
    void (*multiply)(float *out, const float *in, int64_t count);
    void (*function)(int which, float *out, const float *in, int64_t count);
    int (*finite)(const float *in, int64_t count); /* whether all are */
    void (*norm)(const nt_norm *);
    void (*attend)(const nt_attention *);
    /* So many rounds of NT_PEAK_FLOPS floating-point operations, all from registers. */
    void (*multiply_adds)(int64_t rounds, float *out);
} nt_kernels;

enum { NT_PEAK_FLOPS = 2 * 12 * NT_LINE }; /* of one round: 12 accumulators, one line each */

/* Floats of a plane: the lines of one kernel element, or of one kernel column where planes are shared. */
static inline int64_t nt_plane_floats(const nt_geometry *g)
{
    return g->tile + (g->shared ? (g->kernel_h - 1) * g->out_w : 0);
}

/* Floats of a panel for one channel. */
static inline int64_t nt_channel_floats(const nt_geometry *g)
{
    return nt_plane_floats(g) * g->kernel_w * (g->shared ? 1 : g->kernel_h);
}

/* Columns of one channel's rows in the scratch memory that belong to one phase of the stride. */
static inline int64_t nt_phase_floats(const nt_geometry *g)
{
    return g->out_w + (g->kernel_w - 1) / g->stride_w;
}

/* Whether a product's panels need no more than its rows as they are, shifted to the left and to the right. */
static inline int nt_is_plain(const nt_geometry *g)
{
    return g->kernel_w == 3 && g->pad_w == 1 && g->in_w == g->out_w && g->stride_w == 1 && g->stride_h == 1 &&
           g->out_w % 8 == 0;
}

/* Images of which a tile has output positions. */
static inline int64_t nt_images(const nt_geometry *g)
{
    return (g->tile + g->out_h * g->out_w - 1) / (g->out_h * g->out_w);
}

/* Floats of scratch memory that a panel's rows take, channel by channel. */
static inline int64_t nt_scratch_floats(const nt_geometry *g)
{
    const int64_t rows = (g->tile + g->out_w - 2) / g->out_w * g->stride_h + g->kernel_h;
    return rows * g->stride_w * nt_phase_floats(g);
}

extern const nt_kernels nt_kernels_portable;
extern const nt_kernels nt_kernels_avx2;
extern const nt_kernels nt_kernels_avx512;

#endif
