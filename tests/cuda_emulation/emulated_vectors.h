// CUDA's vector types and grid dimensions.
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define MOLKERN_VECTOR2(name, type)       \
  struct alignas(2 * sizeof(type)) name { \
    type x, y;                            \
  };                                      \
  constexpr name make_##name(type x, type y) { return {x, y}; }

#define MOLKERN_VECTOR3(name, type) \
  struct name {                     \
    type x, y, z;                   \
  };                                \
  constexpr name make_##name(type x, type y, type z) { return {x, y, z}; }

#define MOLKERN_VECTOR4(name, type)                               \
  struct alignas(sizeof(type) > 4 ? 16 : 4 * sizeof(type)) name { \
    type x, y, z, w;                                              \
  };                                                              \
  constexpr name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }

#define MOLKERN_VECTORS(name, type) \
  MOLKERN_VECTOR2(name##2, type)    \
  MOLKERN_VECTOR3(name##3, type)    \
  MOLKERN_VECTOR4(name##4, type)

MOLKERN_VECTORS(char, signed char)
MOLKERN_VECTORS(uchar, unsigned char)
MOLKERN_VECTORS(short, short)
MOLKERN_VECTORS(ushort, unsigned short)
MOLKERN_VECTORS(int, int)
MOLKERN_VECTORS(uint, unsigned)
MOLKERN_VECTORS(longlong, long long)
MOLKERN_VECTORS(ulonglong, unsigned long long)
MOLKERN_VECTORS(float, float)
MOLKERN_VECTORS(double, double)

#undef MOLKERN_VECTORS
#undef MOLKERN_VECTOR4
#undef MOLKERN_VECTOR3
#undef MOLKERN_VECTOR2
