/* A program for one network: read and checked once, run by any number of threads at a time. */
#ifndef NT_ENGINE_H
#define NT_ENGINE_H

#include <stdint.h>

#if defined(_WIN32)
#define NT_API __declspec(dllexport)
#else
#define NT_API __attribute__((visibility("default")))
#endif

typedef struct nt_engine nt_engine;

/* Read a program. code: words of 64 bits, as nt_cpu.code writes them; blob: the numbers it refers to, which
   must stay where they are until nt_close. Returns NULL, and says in error what is wrong. */
NT_API nt_engine *nt_open(const int64_t *code, int64_t words, const uint8_t *blob, int64_t bytes, char *error,
                          int64_t error_bytes);
NT_API void nt_close(nt_engine *engine);

/* What a run reads and writes: numbers of an example, members, numbers of a member. */
NT_API void nt_sizes(const nt_engine *engine, int64_t *sizes);

enum { NT_THREADS = 1024 }; /* at most: OpenMP ends the process when the system refuses it a thread */

/* Bytes of working memory that nt_run needs with so many threads; it must be aligned to 64 bytes. -1 if the threads
   are out of range, or the bytes beyond 64 bits. */
NT_API int64_t nt_memory(const nt_engine *engine, int64_t threads);

/* Run on examples, however many; output: (members, examples, numbers of a member). Where an example has NaN or an
   infinity, all of its outputs are NaN. Returns 0; -1 if an argument is out of range. */
NT_API int nt_run(const nt_engine *engine, const float *input, float *output, int64_t examples, int64_t threads,
                  void *memory);

/* The constants that the writer of programs must share, one after another: their names and values; NULL after
   the last. */
NT_API const char *nt_constant(int64_t index, int64_t *value);

/* "avx512", "avx2" or "portable": what this machine runs; NT_CPU_KERNELS in the environment can lower it. */
NT_API const char *nt_kernels_name(void);

/* Multiply and add in registers on each thread, rounds times; returns the floating-point operations done. */
NT_API int64_t nt_multiply_adds(int64_t rounds, int64_t threads);

#endif
