// CPU kernels are compiled once per instruction set and chosen at run time. A kernel is a function
// template over Isa; its source file instantiates it for MOLKERN_ISA, the set it is compiled for.
#pragma once

#include <type_traits>

namespace molkern {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set that this machine and the build have. The environment variable
// MOLKERN_ISA (baseline, avx2, avx512) lowers it, for tests; it never raises it.
Isa best_isa();

const char* name(Isa isa);

// Calls function(std::integral_constant<Isa, best_isa()>).
template <typename Function>
decltype(auto) with_isa(Function&& function) {
#ifdef MOLKERN_X86
  switch (best_isa()) {
    case Isa::avx512:
      return function(std::integral_constant<Isa, Isa::avx512>{});
    case Isa::avx2:
      return function(std::integral_constant<Isa, Isa::avx2>{});
    case Isa::baseline:
      break;
  }
#endif
  return function(std::integral_constant<Isa, Isa::baseline>{});
}

}  // namespace molkern
