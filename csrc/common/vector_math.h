// exp, sin and cos without branches or tables, so that they run on vectors. A value V is a float, a
// double or a GCC/Clang vector of them (Vector<T, lanes>); in CUDA device code it is a number.
// There CUDA's exp does the work; its sin and cos would need a stack for huge arguments.
//
// All reduce the argument after Cody and Waite: x - k C with the constant C in pieces of so few
// bits that k times each piece is exact. Polynomials are Chebyshev interpolants of the remaining
// function, good to a tenth of the last place. Measured errors, in units of the last place: exp
// below 1.1; sin and cos below 1.6 up to |x| = 100 and 2.4 up to 1e4, multiples of pi / 2 included.
#pragma once

#include "common/vector.h"

namespace molkern {

template <typename V>
MOLKERN_INLINE V horner(V, double c) {
  return splat<V>(Scalar<V>(c));
}

// c0 + c1 x + c2 x^2 + ...
template <typename V, typename... Coefficients>
MOLKERN_INLINE V horner(V x, double c0, Coefficients... c) {
  return horner(x, c...) * x + Scalar<V>(c0);
}

namespace vector_math {

template <typename V>
MOLKERN_INLINE Bits<V> to_bits(V x) {
  Bits<V> bits;
  __builtin_memcpy(&bits, &x, sizeof(V));
  return bits;
}

template <typename V>
MOLKERN_INLINE V from_bits(Bits<V> bits) {
  V x;
  __builtin_memcpy(&x, &bits, sizeof(V));
  return x;
}

// Adding this rounds to an integer, which then stands in the low bits of the sum.
template <typename T>
constexpr T round_shift = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);
template <typename T>
constexpr int mantissa_bits = sizeof(T) == 4 ? 23 : 52;

// (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2
template <typename V>
MOLKERN_INLINE V exp_tail(V r) {
  if constexpr (sizeof(Scalar<V>) == 4)
    return horner(r, 0.5, 0.166665766661199283, 0.0416665542129841503, 0.0083632328836826182,
                  0.00139262508314976117);
  else
    return horner(r, 0.500000000000000103, 0.166666666666666675, 0.0416666666666238205,
                  0.0083333333333300382, 0.00138888889173670806, 0.00019841269863171556,
                  2.48015210578682052e-5, 2.75572682769056962e-6, 2.76202015910315488e-7,
                  2.5100472505694996e-8);
}

// (sin(r) - r) / r^3 as a function of r^2, for |r| <= pi / 4
template <typename V>
MOLKERN_INLINE V sin_tail(V r2) {
  if constexpr (sizeof(Scalar<V>) == 4)
    return horner(r2, -0.16666664650292082, 0.00833274593638042232, -0.000195873870684644565);
  else
    return horner(r2, -0.166666666666666646, 0.00833333333333092456, -0.000198412698367224178,
                  2.75573160838163586e-6, -2.50511279440141876e-8, 1.5917848524808261e-10);
}

// (cos(r) - 1 + r^2 / 2) / r^4 as a function of r^2, for |r| <= pi / 4
template <typename V>
MOLKERN_INLINE V cos_tail(V r2) {
  if constexpr (sizeof(Scalar<V>) == 4)
    return horner(r2, 0.0416666646474573772, -0.00138883006969038989, 2.45474371012931988e-5);
  else
    return horner(r2, 0.0416666666666666654, -0.00138888888888873823, 2.48015872987430693e-5,
                  -2.75573172600088382e-7, 2.08761438279931325e-9, -1.13824567780613058e-11);
}

// x - k pi / 2
template <typename V>
MOLKERN_INLINE V reduce_half_pi(V x, V k) {
  using T = Scalar<V>;
  if constexpr (sizeof(T) == 4)
    return (((x - k * T(1.5703125)) - k * T(0.0004837512969970703125)) -
            k * T(7.549533620476722717285156e-8)) -
           k * T(2.5633441515945187882e-12);
  else
    return ((x - k * T(1.5707963267341256142)) - k * T(6.0771005063039659766e-11)) -
           k * T(2.0222662487959507324e-21);
}

}  // namespace vector_math

// Zero where the result would be denormal: denormal numbers slow down everything that reads them.
template <typename V>
MOLKERN_INLINE V exponential(V x) {
  using T = Scalar<V>;
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4)
    return ::expf(x);
  else
    return ::exp(x);
#else
  using namespace vector_math;
  constexpr bool single = sizeof(T) == 4;
  constexpr T smallest = single ? T(-87.336544750553109) : T(-708.39641853226411);
  constexpr T largest = single ? T(88.722839111672999) : T(709.78271289338399);
  constexpr T log2_high = single ? T(0.693145751953125) : T(0.69314718055989033019);
  constexpr T log2_low = single ? T(1.4286068203094172e-6) : T(5.4979230187083711747e-14);
  const V shifted = x * T(1.4426950408889634074) + round_shift<T>;
  const V k = shifted - round_shift<T>;
  const V r = (x - k * log2_high) - k * log2_low;
  const V fraction = exp_tail(r) * (r * r) + r + T(1);
  // 2^k goes into the exponent; the upper bits of `shifted` fall out of the shift.
  const V result = from_bits<V>(to_bits(fraction) + (to_bits(shifted) << mantissa_bits<T>));
  const V finite = x > largest ? splat<V>(T(__builtin_inf())) : result;
  return x < smallest ? V{} : finite;
#endif
}

template <typename V>
MOLKERN_INLINE void sine_cosine(V x, V* sine, V* cosine) {
  using T = Scalar<V>;
  using namespace vector_math;
  constexpr int top = sizeof(T) * 8 - 2;
  constexpr auto sign = typename VectorTraits<V>::Int(1) << (top + 1);
  const V shifted = x * T(0.63661977236758134308) + round_shift<T>;
  V r = reduce_half_pi(x, shifted - round_shift<T>);
  // Where |x| is beyond any reduction, something bounded still; NaN stays.
  r = r > T(1) ? splat<V>(T(1)) : r;
  r = r < T(-1) ? splat<V>(T(-1)) : r;
  const V r2 = r * r;
  const V s = sin_tail(r2) * r2 * r + r;
  const V c = cos_tail(r2) * r2 * r2 + (T(1) - T(0.5) * r2);
  const Bits<V> quadrant = to_bits(shifted);
  const auto odd = (quadrant & 1) != 0;
  *sine = from_bits<V>(to_bits(odd ? c : s) ^ ((quadrant << top) & sign));
  *cosine = from_bits<V>(to_bits(odd ? s : c) ^ (((quadrant + 1) << top) & sign));
}

}  // namespace molkern
