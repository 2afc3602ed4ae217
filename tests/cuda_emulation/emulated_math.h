// CUDA's mathematical functions and intrinsics. Compile with -ffp-contract=off, so that what must
// not be contracted is not.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define MOLKERN_MIN_MAX(T)                         \
  inline T min(T a, T b) { return a < b ? a : b; } \
  inline T max(T a, T b) { return a < b ? b : a; }
MOLKERN_MIN_MAX(int)
MOLKERN_MIN_MAX(unsigned)
MOLKERN_MIN_MAX(long)
MOLKERN_MIN_MAX(unsigned long)
MOLKERN_MIN_MAX(long long)
MOLKERN_MIN_MAX(unsigned long long)
#undef MOLKERN_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

#define MOLKERN_ROUNDED(T, prefix)                           \
  inline T __##prefix##add_rn(T a, T b) { return a + b; }    \
  inline T __##prefix##sub_rn(T a, T b) { return a - b; }    \
  inline T __##prefix##mul_rn(T a, T b) { return a * b; }    \
  inline T __##prefix##div_rn(T a, T b) { return a / b; }    \
  inline T __##prefix##sqrt_rn(T a) { return std::sqrt(a); } \
  inline T __##prefix##rcp_rn(T a) { return 1 / a; }
MOLKERN_ROUNDED(float, f)
MOLKERN_ROUNDED(double, d)
#undef MOLKERN_ROUNDED
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1 / std::sqrt(double{x})); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}

namespace cuda_emulation {

// sin and cos of pi x, exact at multiples of one half, as CUDA's are.
inline void sincospi(double x, double* sine, double* cosine) {
  const double quarter = std::nearbyint(2 * x);
  const double rest = (x - quarter / 2) * 3.14159265358979323846;
  const double s = std::sin(rest), c = std::cos(rest);
  const int turn = static_cast<int>(std::fmod(quarter, 4.0)) & 3;
  *sine = turn == 0 ? s : turn == 1 ? c : turn == 2 ? -s : -c;
  *cosine = turn == 0 ? c : turn == 1 ? -s : turn == 2 ? -c : s;
}

}  // namespace cuda_emulation

// libstdc++ and newer C libraries may have functions of these names, hence macros.
inline double emulated_sinpi(double x) {
  double sine, cosine;
  cuda_emulation::sincospi(x, &sine, &cosine);
  return sine;
}
inline double emulated_cospi(double x) {
  double sine, cosine;
  cuda_emulation::sincospi(x, &sine, &cosine);
  return cosine;
}
inline void emulated_sincospi(double x, double* sine, double* cosine) {
  cuda_emulation::sincospi(x, sine, cosine);
}
inline void emulated_sincospi(float x, float* sine, float* cosine) {
  double s, c;
  cuda_emulation::sincospi(x, &s, &c);
  *sine = static_cast<float>(s);
  *cosine = static_cast<float>(c);
}
#define sinpi(x) emulated_sinpi(x)
#define cospi(x) emulated_cospi(x)
#define sinpif(x) static_cast<float>(emulated_sinpi(x))
#define cospif(x) static_cast<float>(emulated_cospi(x))
#define sincospi(x, sine, cosine) emulated_sincospi(x, sine, cosine)
#define sincospif(x, sine, cosine) emulated_sincospi(x, sine, cosine)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}

namespace cuda_emulation {
template <typename To, typename From>
To reinterpret(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}
}  // namespace cuda_emulation

inline int __float_as_int(float x) { return cuda_emulation::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_emulation::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_emulation::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) {
  return cuda_emulation::reinterpret<long long>(x);
}
inline double __longlong_as_double(long long x) { return cuda_emulation::reinterpret<double>(x); }

inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(std::ceil(x)); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __double2int_rd(double x) { return static_cast<int>(std::floor(x)); }
inline int __double2int_ru(double x) { return static_cast<int>(std::ceil(x)); }
inline int __double2int_rn(double x) { return static_cast<int>(std::nearbyint(x)); }
inline int __double2int_rz(double x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
