// The Python module: what is not an operator. Loading it registers the operators.
#include <pybind11/pybind11.h>

#include "common/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "molkern's compiled kernels; use the molkern package";
  module.def("build_info", [] {
    py::dict info;
    info["compiler"] = MOLKERN_COMPILER;
    info["torch"] = MOLKERN_TORCH_VERSION;
    info["cpu_instruction_sets"] = py::str(MOLKERN_ISAS).attr("split")(",");
    info["cpu_instruction_set_in_use"] = molkern::name(molkern::best_isa());
    info["cuda"] = py::str(MOLKERN_CUDA_VERSION);
    info["cuda_architectures"] = py::str(MOLKERN_CUDA_ARCHITECTURES).attr("split")();
#ifdef MOLKERN_EMULATE_CUDA
    info["cuda_emulation"] = true;
#else
    info["cuda_emulation"] = false;
#endif
    return info;
  });
}
