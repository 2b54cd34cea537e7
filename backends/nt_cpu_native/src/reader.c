#include "reader.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void fail(reader *r, const char *format, ...)
{
    if (r->failed)
        return;
    r->failed = 1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->error, (size_t)r->error_bytes, format, arguments);
    va_end(arguments);
}

int64_t word(reader *r, const char *what, int64_t low, int64_t high)
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

const void *numbers(reader *r, const char *what, int64_t count, int64_t size, int optional)
{
    const int64_t at = word(r, what, optional ? -1 : 0, r->bytes);
    if (r->failed || at < 0)
        return NULL;
    if (at % size || count > (r->bytes - at) / size) {
        fail(r, "%s: expected %lld elements at byte %lld, found %lld bytes in all", what, (long long)count,
             (long long)at, (long long)r->bytes);
        return NULL;
    }
    /* A program refers to each number once; else a small file could stand for a large one. */
    r->taken += count * size;
    if (r->taken > r->bytes) {
        fail(r, "%s: numbers are referred to more than once", what);
        return NULL;
    }
    return r->blob + at;
}

void *make(reader *r, int64_t count, size_t size)
{
    const int64_t most = ((int64_t)64 << 20) + 64 * (r->words * (int64_t)sizeof(int64_t) + r->bytes);
    if (count < 1)
        count = 1;
    if (count > (most - r->made) / (int64_t)size) {
        fail(r, "expected a program that needs at most %lld bytes to be read", (long long)most);
        return NULL;
    }
    r->made += count * (int64_t)size;
    void *made = calloc((size_t)count, size);
    if (!made)
        fail(r, "not enough memory");
    return made;
}
