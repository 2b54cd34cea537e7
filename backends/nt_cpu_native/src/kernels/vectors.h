/* Vectors of the instruction set that a file is compiled for, in the compiler's own notation. */
#ifndef NT_VECTORS_H
#define NT_VECTORS_H

#include "kernels.h"

/* Every kernel bears the instruction set in its name: NT_OF(rows) is rows_avx2, say. */
#define NT_JOIN(name, set) nt_##name##_##set
#define NT_EXPAND(name, set) NT_JOIN(name, set)
#define NT_OF(name) NT_EXPAND(name, NT_SET)

void NT_OF(rows)(const nt_rows *);
void NT_OF(dots)(const nt_rows *);
void NT_OF(panel)(const nt_geometry *, const nt_panel *);
void NT_OF(affine)(float *, const float *, float, float, int, int64_t);
void NT_OF(add)(float *, const float *, int64_t);
void NT_OF(multiply)(float *, const float *, int64_t);
void NT_OF(function)(int, float *, const float *, int64_t);
int NT_OF(finite)(const float *, int64_t);
void NT_OF(norm)(const nt_norm *);
void NT_OF(attend)(const nt_attention *);
void NT_OF(multiply_adds)(int64_t, float *);

#if defined(__AVX512F__)
enum { WIDTH = 16 };
#elif defined(__AVX__)
enum { WIDTH = 8 };
#else
enum { WIDTH = 4 };
#endif
enum { PER_LINE = NT_LINE / WIDTH };

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4), may_alias));
typedef int32_t bits __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4), may_alias));
typedef uint32_t words __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4), may_alias));

/* exp of each lane; its relative error is below 2e-7, and NaN stays NaN. Cephes' polynomial, Moshier 1989. */
static inline vec exponential(vec x)
{
    const vec high = (vec){0} + 88.0f, low = (vec){0} - 87.3f, shift = (vec){0} + 12582912.0f; /* 1.5 * 2^23 */
    x = (vec)(((bits)high & (x > high)) | ((bits)x & ~(x > high)));
    x = (vec)(((bits)low & (x < low)) | ((bits)x & ~(x < low)));
    const vec shifted = x * 1.44269504f + shift, n = shifted - shift;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* Times 2^n: the lowest bits of the shifted number are n. */
    return (vec)((words)p + ((words)shifted << 23));
}

#endif
