/* The constants that nt_cpu, in Python, must have alike: it compares them when it loads the library, because a
   program written for other ones would be read as another network. */
#include "program.h"
#include "reader.h"

static const struct {
    const char *name;
    int64_t value;
} constants[] = {
    {"MAGIC", NT_MAGIC},
    {"VERSION", NT_VERSION},
    {"LINE", NT_LINE},
    {"TILE", NT_TILE},
    {"UNIT", NT_UNIT},
    {"SETS", SETS},
    {"THREADS", NT_THREADS},
    {"product", PRODUCT},
    {"affine", AFFINE},
    {"add", ADD},
    {"multiply", MULTIPLY},
    {"input", INPUT},
    {"output", OUTPUT},
    {"max_pool", MAX_POOL},
    {"average_pool", AVERAGE_POOL},
    {"global_average", GLOBAL_AVERAGE},
    {"move", MOVE},
    {"function", FUNCTION},
    {"norm", NORM},
    {"attention", ATTENTION},
    {"embedding", EMBEDDING},
    {"fill", FILL},
    {"KINDS", KINDS},
    {"gelu", NT_GELU},
    {"silu", NT_SILU},
    {"tanh", NT_TANH},
    {"sigmoid", NT_SIGMOID},
    {"FUNCTIONS", NT_FUNCTIONS},
};

const char *nt_constant(int64_t index, int64_t *value)
{
    if (index < 0 || (size_t)index >= sizeof constants / sizeof *constants)
        return NULL;
    *value = constants[index].value;
    return constants[index].name;
}
