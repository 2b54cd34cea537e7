#include "program.h"

#ifdef _OPENMP
#include <omp.h>
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
}

int nt_run(const nt_engine *e, const float *input, float *output, int64_t examples, int64_t threads, void *memory)
{
    if (!e || !input || !output || !memory || examples < 1 || threads < 1 ||
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
