#include "program.h"

#include <stdlib.h>
#include <string.h>

const nt_kernels *nt_choose(void)
{
    const char *wish = getenv("NT_CPU_KERNELS");
#if defined(NT_X86)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (avx512 && (!wish || !strcmp(wish, "avx512")))
        return &nt_kernels_avx512;
    if (avx2 && (!wish || strcmp(wish, "portable")))
        return &nt_kernels_avx2;
#else
    (void)wish;
#endif
    return &nt_kernels_portable;
}

const char *nt_kernels_name(void) { return nt_choose()->name; }

int64_t nt_multiply_adds(int64_t rounds, int64_t threads)
{
    const nt_kernels *kernels = nt_choose();
    int64_t done = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)threads) reduction(+ : done)
#else
    (void)threads;
#endif
    {
        volatile float sink;
        float found;
        kernels->multiply_adds(rounds, &found);
        sink = found;
        (void)sink;
        done += rounds * NT_PEAK_FLOPS;
    }
    return done;
}
