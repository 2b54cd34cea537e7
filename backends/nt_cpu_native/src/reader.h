/* Reading a program: words one after another, each checked; the first mistake is kept and all that follows is
   skipped. */
#ifndef NT_READER_H
#define NT_READER_H

#include "program.h"

typedef struct {
    const int64_t *code;
    int64_t words, at;
    const uint8_t *blob;
    int64_t bytes;
    char *error;
    int64_t error_bytes;
    int failed;
    int64_t taken, made; /* bytes of the blob that are referred to; of memory */
    uint8_t lines[(1 << 16) * NT_UNIT / (NT_LINE * 4)]; /* of a product's panels: whether connections may begin there */
} reader;

enum { NT_MAGIC = 0x4e544350, NT_VERSION = 4 }; /* of programs */
enum { MOST_VALUES = 1 << 20 };
enum { MOST = 1 << 28 }; /* of anything that is counted: products of three fit 64 bits only if checked */

void fail(reader *r, const char *format, ...);

/* The next word, which must lie between low and high. */
int64_t word(reader *r, const char *what, int64_t low, int64_t high);

/* Where count elements lie in the blob, whose place the next word says; NULL if it is -1. */
const void *numbers(reader *r, const char *what, int64_t count, int64_t size, int optional);

/* Zeroed memory. */
void *make(reader *r, int64_t count, size_t size);

/* read_product.c */
void read_geometry(reader *r, nt_geometry *g, int64_t row);
void expect_geometry(reader *r, const nt_geometry *g, const value *in, const value *out);
void read_product(reader *r, nt_engine *e, op *o, const value *in, const value *out);

/* flow.c */
void expect_flow(reader *r, const nt_engine *e);

#endif
