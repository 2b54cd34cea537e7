#include "program.h"

#include <math.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
#include <pthread.h>

/* GNU's OpenMP keeps the threads of a run for the next one. A fork does not copy threads, so the child would wait
   for them forever: they end before the fork, and the next run makes new ones. LLVM's OpenMP does so itself. */
static void end_threads(void) { omp_pause_resource_all(omp_pause_soft); }

__attribute__((constructor)) static void expect_forks(void) { pthread_atfork(end_threads, NULL, NULL); }
#endif

static void wait_for_others(void)
{
#ifdef _OPENMP
#pragma omp barrier
#endif
}

static void run_op(const worker *w, const op *o)
{
    switch (o->kind) {
    case PRODUCT:
        run_product(w, o);
        break;
    case MAX_POOL:
    case AVERAGE_POOL:
        run_pool(w, o);
        break;
    case GLOBAL_AVERAGE:
        run_average(w, o);
        break;
    case MOVE:
        run_move(w, o);
        break;
    case NORM:
        run_norm(w, o);
        break;
    case ATTENTION:
        run_attention(w, o);
        break;
    case EMBEDDING:
        run_embedding(w, o);
        break;
    case FILL:
        run_fill(w, o);
        break;
    case INPUT:
    case OUTPUT:
        run_across(w, o);
        break;
    default:
        run_by_rows(w, o);
    }
}

/* Compute one batch of the program; all of its threads call this. */
static void run_batch(worker w, int64_t batch)
{
    const nt_engine *e = w.engine;
    w.first = batch * e->batch;
    w.examples = w.all - w.first < e->batch ? w.all - w.first : e->batch;
    for (int64_t i = 0; i < e->op_count; i++) {
        run_op(&w, &e->ops[i]);
        if (w.threads > 1)
            wait_for_others();
    }
}

/* Let NaN and infinity reach every output of their example, as they do where 0 * NaN is added up: an input without
   connections would not show them. */
static void spoil(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t begin, int64_t end)
{
    for (int64_t b = begin; b < end; b++) {
        if (e->kernels->finite(input + b * e->input_floats, e->input_floats))
            continue;
        for (int64_t m = 0; m < e->outputs; m++)
            for (int64_t i = 0; i < e->output_floats; i++)
                output[(m * examples + b) * e->output_floats + i] = NAN;
    }
}

/* As many batches as come out even are computed by a thread each; all threads share the rest. */
static void run_thread(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t thread,
                       int64_t threads, float *memory)
{
    const int64_t each = e->floats + own_floats(e), batches = (examples + e->batch - 1) / e->batch;
    const int64_t even = batches / threads * threads;
    float *own = memory + thread * each;
    for (int64_t batch = thread; batch < even; batch += threads) {
        const worker w = {e, input, output, own, own + e->floats, examples, 0, 0, 0, 1};
        run_batch(w, batch);
    }
    wait_for_others();
    for (int64_t batch = even; batch < batches; batch++) {
        const worker w = {e, input, output, memory, own + e->floats, examples, 0, 0, thread, threads};
        run_batch(w, batch);
    }
    spoil(e, input, output, examples, share(examples, thread, threads), share(examples, thread + 1, threads));
}

int nt_run(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t threads, void *memory)
{
    if (!e || !input || !output || !memory || examples < 1 || threads < 1 || threads > NT_THREADS ||
        (uintptr_t)memory % (NT_LINE * sizeof(float)))
        return -1;
#ifdef _OPENMP
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    run_thread(e, input, output, examples, omp_get_thread_num(), omp_get_num_threads(), memory);
#else
    run_thread(e, input, output, examples, 0, 1, memory);
#endif
    return 0;
}
