// The Python module: what is not an operator. Loading it registers the operators.
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "common/grain.h"
#include "common/idle_memory.h"
#include "common/isa.h"

namespace py = pybind11;

#ifdef MOLKERN_EMULATE_CUDA
namespace cuda_emulation {
bool wanted();
std::vector<std::string> launched();
}  // namespace cuda_emulation
#endif

PYBIND11_MODULE(_C, module) {
  module.doc() = "molkern's compiled kernels; use the molkern package";
  module.def("set_thread_grain", [](int64_t grain) {
    return std::exchange(molkern::thread_grain(), grain > 0 ? grain : 1);
  });
  module.def("drop_idle_memory", &molkern::drop_idle_memory);
  module.def("build_info", [] {
    py::dict info;
    info["compiler"] = MOLKERN_COMPILER;
    info["torch"] = MOLKERN_TORCH_VERSION;
    info["cpu_instruction_sets"] = py::str(MOLKERN_ISAS).attr("split")(",");
    info["cpu_instruction_set_in_use"] = molkern::name(molkern::best_isa());
    info["cuda"] = py::str(MOLKERN_CUDA_VERSION);
    info["cuda_architectures"] = py::str(MOLKERN_CUDA_ARCHITECTURES).attr("split")();
#ifdef MOLKERN_EMULATE_CUDA
    info["cuda_emulation"] = cuda_emulation::wanted();
#else
    info["cuda_emulation"] = false;
#endif
    return info;
  });
#ifdef MOLKERN_EMULATE_CUDA
  // Names of the CUDA kernels that this process has run so far.
  module.def("launched_kernels", [] {
    py::list names;
    for (const std::string& name : cuda_emulation::launched()) names.append(name);
    return names;
  });
#endif
}
