#include "vectors.h"

#define NT_QUOTE(set) #set
#define NT_NAME(set) NT_QUOTE(set)

const nt_kernels NT_OF(kernels) = {
    NT_NAME(NT_SET),  NT_OF(rows),     NT_OF(dots),   NT_OF(panel), NT_OF(affine), NT_OF(add),
    NT_OF(multiply), NT_OF(function), NT_OF(finite), NT_OF(norm),  NT_OF(attend), NT_OF(multiply_adds),
};
