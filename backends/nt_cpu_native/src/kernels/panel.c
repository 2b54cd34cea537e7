/* Panels: input copied, shifted and padded for a tile.

   A convolution reads each input once for each kernel element. The copies are made here, once for a tile and all
   rows of the matrix, so that a connection is one offset and its numbers are whole aligned lines. A panel is about
   as large as the first-level cache, because every row reads all over it. */
#include "vectors.h"

#include <string.h>

/* Copy a channel's floats, as they are or through the affine map before the kernel. */
static inline void take(const nt_panel *p, int64_t c, float *to, const float *from, int64_t count)
{
    if (p->scale)
        NT_OF(affine)(to, from, p->scale[c], p->shift[c], p->relu, count);
    else
        memcpy(to, from, (size_t)count * sizeof(float));
}

static inline void zero(float *to, int64_t count)
{
    if (count > 0)
        memset(to, 0, (size_t)count * sizeof(float));
}

/* Write one row of a channel with its padding: for each phase of the stride its columns side by side. */
static void pad_row(const nt_geometry *g, const nt_panel *p, int64_t c, const float *row, float *to)
{
    const int64_t s = g->stride_w, width = nt_phase_floats(g);
    for (int64_t phase = 0; phase < s; phase++, to += width) {
        /* columns j with 0 <= j * s + left < in_w */
        const int64_t left = phase - g->pad_w, room = g->in_w - left;
        int64_t begin = left < 0 ? (-left + s - 1) / s : 0, end = room > 0 ? (room + s - 1) / s : 0;
        end = end > width ? width : end;
        begin = begin > end ? end : begin;
        zero(to, begin);
        zero(to + end, width - end);
        if (s == 1)
            take(p, c, to + begin, row + begin + left, end - begin);
        else {
            for (int64_t j = begin; j < end; j++)
                to[j] = row[j * s + left];
            if (p->scale)
                NT_OF(affine)(to + begin, to + begin, p->scale[c], p->shift[c], p->relu, end - begin);
        }
    }
}

#define COPY_ROWS(width)                                                                                      \
    for (int64_t r = 0; r < rows; r++)                                                                        \
        memcpy(to + r * (width), from + r * step, (size_t)(width) * sizeof(float))

/* Copy whole rows; the sizes that are common are copied without a call, because a call takes longer than the copy. */
static inline void copy_rows(float *to, const float *from, int64_t rows, int64_t width, int64_t step)
{
    if (width == 8)
        COPY_ROWS(8);
    else if (width == 16)
        COPY_ROWS(16);
    else if (width == 32)
        COPY_ROWS(32);
    else
        COPY_ROWS(width);
}

/* Copy some positions of an image's rows. */
static void copy_positions(float *to, const float *from, int64_t begin, int64_t count, int64_t width, int64_t step)
{
    if (begin % width == 0 && count % width == 0) {
        copy_rows(to, from, count / width, width, step);
        return;
    }
    for (int64_t done = 0, x = begin % width; done < count; x = 0, from += step) {
        const int64_t n = width - x < count - done ? width - x : count - done;
        memcpy(to + done, from + x, (size_t)n * sizeof(float));
        done += n;
    }
}

/* Planes of three kernel columns for whole rows: each row is read once, in pieces of 8 or 16 columns, shifted in
   registers and written where each kernel element needs it. */
#define THREE_COLUMNS(size, MIDDLE_TO_RIGHT, MIDDLE_TO_LEFT)                                                  \
    typedef float piece_##size __attribute__((vector_size((size) * 4), aligned(4), may_alias));               \
    typedef int32_t bits_##size __attribute__((vector_size((size) * 4), may_alias));                          \
    static inline piece_##size load_##size(const nt_panel *p, const float *from, float scale, float shift)    \
    {                                                                                                         \
        piece_##size x = *(const piece_##size *)from;                                                         \
        if (p->scale)                                                                                         \
            x = scale * x + shift;                                                                            \
        return p->relu ? (piece_##size)(~(x < (piece_##size){0}) & (bits_##size)x) : x;                       \
    }                                                                                                         \
    static void three_columns_##size(const nt_geometry *g, const nt_panel *p)                                 \
    {                                                                                                         \
        const int64_t width = g->out_w, pieces = width / (size), plane = nt_plane_floats(g);                  \
        const int64_t tall = p->count / width, rows = tall + g->kernel_h - 1;                                 \
        const int64_t top = p->begin / width - g->pad_h, copies = g->shared ? 1 : g->kernel_h;                \
        const piece_##size none = {0};                                                                        \
        for (int64_t i = 0; i < p->channels; i++) {                                                           \
            const int64_t c = p->channel + i;                                                                 \
            const float scale = p->scale ? p->scale[c] : 1.0f, shift = p->scale ? p->shift[c] : 0.0f;         \
            float *to = p->panel + i * nt_channel_floats(g);                                                  \
            for (int64_t r = 0; r < rows; r++) {                                                              \
                const int inside = top + r >= 0 && top + r < g->in_h;                                         \
                const float *row = p->in + c * p->pitch + (top + r) * width;                                  \
                piece_##size left = none, x = inside ? load_##size(p, row, scale, shift) : none;              \
                for (int64_t n = 0; n < pieces; n++) {                                                        \
                    const int more = inside && n + 1 < pieces;                                                \
                    const piece_##size right = more ? load_##size(p, row + (n + 1) * (size), scale, shift)    \
                                                    : none;                                                   \
                    const piece_##size before = MIDDLE_TO_RIGHT(left, x), after = MIDDLE_TO_LEFT(x, right);   \
                    for (int64_t ky = 0; ky < copies; ky++) {                                                 \
                        const int64_t y = r - ky;                                                             \
                        if (!g->shared && (y < 0 || y >= tall))                                               \
                            continue;                                                                         \
                        float *at = to + ky * 3 * plane + y * width + n * (size);                             \
                        *(piece_##size *)at = before;                                                         \
                        *(piece_##size *)(at + plane) = x;                                                    \
                        *(piece_##size *)(at + 2 * plane) = after;                                            \
                    }                                                                                         \
                    left = x;                                                                                 \
                    x = right;                                                                                \
                }                                                                                             \
            }                                                                                                 \
        }                                                                                                     \
    }

#define RIGHT_8(left, x) __builtin_shufflevector(left, x, 7, 8, 9, 10, 11, 12, 13, 14)
#define LEFT_8(x, right) __builtin_shufflevector(x, right, 1, 2, 3, 4, 5, 6, 7, 8)
#define RIGHT_16(left, x)                                                                                     \
    __builtin_shufflevector(left, x, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
#define LEFT_16(x, right)                                                                                     \
    __builtin_shufflevector(x, right, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)

THREE_COLUMNS(8, RIGHT_8, LEFT_8)
#if defined(__AVX512F__)
THREE_COLUMNS(16, RIGHT_16, LEFT_16)
#endif

static void any_panel(const nt_geometry *g, const nt_panel *p)
{
    const int64_t floats = nt_channel_floats(g), plane = nt_plane_floats(g);
    const int pointwise = floats == g->tile && g->in_h == g->out_h && g->in_w == g->out_w && !g->pad_h && !g->pad_w;
    const int64_t first = p->begin / g->out_w, last = (p->begin + p->count - 1) / g->out_w;
    const int64_t top = first * g->stride_h - g->pad_h, rows = (last - first) * g->stride_h + g->kernel_h;
    const int64_t phase = nt_phase_floats(g), step = g->stride_w * phase;
    for (int64_t i = 0; i < p->channels; i++) {
        const int64_t c = p->channel + i;
        const float *channel = p->in + c * p->pitch;
        float *to = p->panel + i * floats;
        if (pointwise) {
            take(p, c, to, channel + p->begin, p->count);
            zero(to + p->count, p->tail);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            if (top + r < 0 || top + r >= g->in_h)
                zero(p->scratch + r * step, step);
            else
                pad_row(g, p, c, channel + (top + r) * g->in_w, p->scratch + r * step);
        for (int64_t ky = 0; ky < (g->shared ? 1 : g->kernel_h); ky++)
            for (int64_t kx = 0; kx < g->kernel_w; kx++, to += plane) {
                const float *from = p->scratch + ky * step + kx % g->stride_w * phase + kx / g->stride_w;
                if (g->shared)
                    copy_rows(to, from, rows, g->out_w, step);
                else {
                    copy_positions(to, from, p->begin, p->count, g->out_w, g->stride_h * step);
                    zero(to + p->count, p->tail);
                }
            }
    }
}

/* A panel of small images, float by float. */
static void panel_by_table(const nt_geometry *g, const nt_panel *p)
{
    const int64_t inputs = g->in_h * g->in_w, floats = nt_channel_floats(g), end = nt_images(g) * inputs;
    const int64_t count = p->count + p->tail;
    zero(p->scratch + p->images * inputs, end + 1 - p->images * inputs);
    for (int64_t i = 0; i < p->channels; i++) {
        const int64_t c = p->channel + i;
        const float *channel = p->in + c * p->pitch;
        if (p->image_step == inputs)
            take(p, c, p->scratch, channel, p->images * inputs);
        else
            for (int64_t e = 0; e < p->images; e++)
                take(p, c, p->scratch + e * inputs, channel + e * p->image_step, inputs);
        float *to = p->panel + i * floats;
        for (int64_t k = 0; k < floats; k += g->tile)
            for (int64_t n = 0; n < count; n++)
                to[k + n] = p->scratch[p->table[k + n]];
    }
}

void NT_OF(panel)(const nt_geometry *g, const nt_panel *p)
{
    const int64_t width = g->out_w;
    if (p->table) {
        panel_by_table(g, p);
        return;
    }
    if (nt_is_plain(g) && p->begin % width == 0 && p->count % width == 0 && !p->tail) {
#if defined(__AVX512F__)
        if (width % 16 == 0) {
            three_columns_16(g, p);
            return;
        }
#endif
        three_columns_8(g, p);
        return;
    }
    any_panel(g, p);
}
