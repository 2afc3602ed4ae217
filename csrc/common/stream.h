// The CUDA stream type by name only, so that headers need no CUDA installation.
#pragma once

struct CUstream_st;

namespace molkern {
using Stream = CUstream_st*;  // the same type as cudaStream_t
}
