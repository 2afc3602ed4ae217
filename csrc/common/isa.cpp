#include "common/isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace molkern {
namespace {

Isa supported() {
#if defined(MOLKERN_WITH_AVX2) || defined(MOLKERN_WITH_AVX512)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef MOLKERN_WITH_AVX512
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
#endif
#ifdef MOLKERN_WITH_AVX2
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa allowed() {
  const char* wanted = std::getenv("MOLKERN_ISA");
  if (wanted && !std::strcmp(wanted, "baseline")) return Isa::baseline;
  if (wanted && !std::strcmp(wanted, "avx2")) return Isa::avx2;
  return Isa::avx512;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = std::min(supported(), allowed());
  return isa;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

}  // namespace molkern
