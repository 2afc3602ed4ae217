// CPU kernels are compiled once per instruction set and chosen at run time. A kernel is a function
// template over Isa; its source file instantiates it for MOLKERN_ISA, the set it is compiled for.
#pragma once

#include <stdexcept>
#include <type_traits>

namespace molkern {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set that this machine and the build have. The environment variable
// MOLKERN_ISA (baseline, avx2, avx512) lowers it, for tests; it never raises it.
Isa best_isa();

const char* name(Isa isa);

// Calls function(std::integral_constant<Isa, best_isa()>), of the sets in this build.
template <typename Function>
decltype(auto) with_isa(Function&& function) {
#ifdef MOLKERN_WITH_AVX512
  if (best_isa() == Isa::avx512) return function(std::integral_constant<Isa, Isa::avx512>{});
#endif
#ifdef MOLKERN_WITH_AVX2
  if (best_isa() == Isa::avx2) return function(std::integral_constant<Isa, Isa::avx2>{});
#endif
#ifdef MOLKERN_WITH_BASELINE
  return function(std::integral_constant<Isa, Isa::baseline>{});
#else
  throw std::runtime_error("molkern: built for other instruction sets than this machine's");
#endif
}

}  // namespace molkern
