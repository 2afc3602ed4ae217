// The geometry of periodic images, shared by host and device: which pairs are neighbors, the frame
// in which atoms are wrapped and sorted, and how an image is packed into an integer.
//
// Frame. Gram-Schmidt on the periodic cell vectors, last one first, turns the cell into a
// triangular matrix (rows are the cell vectors in the frame's axes)
//
//     | L00 L01 L02 |
//     |  0  L11 L12 |      L00, L11, L22 > 0
//     |  0   0  L22 |
//
// so bricks of L00 x L11 x L22 tile all space, however skewed the cell: shifting by the first
// vector moves to the next layer of bricks (which is displaced by L01, L02), by the second to the
// next row of the layer, by the third to the next brick of the row. Wrapping into the brick and all
// ranges of bins are then those of an orthorhombic box. Axes that are not periodic complete the
// frame orthonormally; along them coordinates are left as they are.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MOLKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MOLKERN_HOST_DEVICE inline
#endif

namespace molkern {

// Products and sums that no compiler may fuse. On the host the files that include this are compiled
// with -ffp-contract=off.
MOLKERN_HOST_DEVICE double exact_mul(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

MOLKERN_HOST_DEVICE double exact_add(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// The definition of an edge, d < cutoff, with d the length of (xj - xi) + s . C. Exchanging the
// atoms and the sign of s negates every intermediate value exactly, so both directions always
// agree. `cell` may be null where nothing is periodic.
template <typename T>
MOLKERN_HOST_DEVICE bool pair_in_range(const T* xi, const T* xj, const int32_t* shift,
                                       const T* cell, double cutoff_squared) {
  double squared = 0.0;
  for (int d = 0; d < 3; ++d) {
    double component = exact_add(static_cast<double>(xj[d]), -static_cast<double>(xi[d]));
    if (cell) {
      double image = exact_mul(shift[0], static_cast<double>(cell[d]));
      image = exact_add(image, exact_mul(shift[1], static_cast<double>(cell[3 + d])));
      image = exact_add(image, exact_mul(shift[2], static_cast<double>(cell[6 + d])));
      component = exact_add(component, image);
    }
    squared = exact_add(squared, exact_mul(component, component));
  }
  return squared < cutoff_squared;
}

struct Frame {
  double axes[3][3];  // row l: unit vector l of the frame
  double lattice[3]
                [3];  // row k: cell vector k in the frame, upper triangular; zero if not periodic
  double inverse[3];  // 1 / lattice[k][k]; zero if not periodic
  double spacing[3];  // distance of lattice planes along axis k; zero if not periodic
  bool periodic[3];
  double volume;  // spanned by the periodic vectors (a volume, area, length; 1 if there are none)
};

enum class FrameError { none, not_finite, singular };

MOLKERN_HOST_DEVICE double dot3(const double* a, const double* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// Removes from v its components along the axes named by `known`; twice, against rounding.
MOLKERN_HOST_DEVICE void orthogonalize(const Frame& frame, const bool* known, double* v) {
  for (int pass = 0; pass < 2; ++pass)
    for (int l = 2; l >= 0; --l) {
      if (!known[l]) continue;
      const double along = dot3(v, frame.axes[l]);
      for (int d = 0; d < 3; ++d) v[d] -= along * frame.axes[l][d];
    }
}

// Fills the axes that no periodic vector defines, each from the Cartesian direction farthest from
// those already there.
MOLKERN_HOST_DEVICE void complete_frame(Frame* frame, bool* known) {
  for (int k = 0; k < 3; ++k) {
    if (known[k]) continue;
    double best = -1.0;
    // Trying k first keeps a frame without skew aligned with the Cartesian axes.
    for (int trial = 0; trial < 3; ++trial) {
      double v[3] = {0.0, 0.0, 0.0};
      v[(k + trial) % 3] = 1.0;
      orthogonalize(*frame, known, v);
      const double length = sqrt(dot3(v, v));
      if (length <= best + 1e-3) continue;
      best = length;
      for (int d = 0; d < 3; ++d) frame->axes[k][d] = v[d] / length;
      if (best > 0.99) break;
    }
    known[k] = true;
  }
}

// Distances of lattice planes, 1 / |reciprocal vector|, from the inverse of the triangular lattice
// (with 1 on the diagonal where an axis is not periodic).
MOLKERN_HOST_DEVICE void set_spacing(Frame* frame) {
  const double i0 = frame->periodic[0] ? frame->inverse[0] : 1.0;
  const double i1 = frame->periodic[1] ? frame->inverse[1] : 1.0;
  const double i2 = frame->periodic[2] ? frame->inverse[2] : 1.0;
  const double i01 = -i0 * frame->lattice[0][1] * i1;
  const double i12 = -i1 * frame->lattice[1][2] * i2;
  const double i02 = -(i0 * frame->lattice[0][2] + i01 * frame->lattice[1][2]) * i2;
  const double column[3] = {i0 * i0, i01 * i01 + i1 * i1, i02 * i02 + i12 * i12 + i2 * i2};
  for (int k = 0; k < 3; ++k) frame->spacing[k] = frame->periodic[k] ? 1.0 / sqrt(column[k]) : 0.0;
}

// `cell` and `pbc` null: not periodic. Cell vectors of axes that are not periodic must be finite
// and are not used otherwise. Singular: the periodic vectors span less than 1e-8 of the volume that
// perpendicular vectors of their lengths would.
template <typename T>
MOLKERN_HOST_DEVICE FrameError make_frame(const T* cell, const uint8_t* pbc, Frame* frame) {
  bool known[3] = {false, false, false};
  double ratio = 1.0;
  frame->volume = 1.0;
  for (int k = 2; k >= 0; --k) {
    frame->periodic[k] = cell && pbc && pbc[k];
    frame->inverse[k] = 0.0;
    for (int l = 0; l < 3; ++l) frame->lattice[k][l] = 0.0;
    if (cell)
      for (int d = 0; d < 3; ++d)
        if (!(fabs(static_cast<double>(cell[3 * k + d])) <= 1e300)) return FrameError::not_finite;
  }
  for (int k = 2; k >= 0; --k) {
    if (!frame->periodic[k]) continue;
    const double full[3] = {static_cast<double>(cell[3 * k]), static_cast<double>(cell[3 * k + 1]),
                            static_cast<double>(cell[3 * k + 2])};
    double v[3] = {full[0], full[1], full[2]};
    orthogonalize(*frame, known, v);
    const double length = sqrt(dot3(v, v));
    frame->volume *= length;
    ratio *= length / sqrt(dot3(full, full));
    if (!(ratio > 1e-8)) return FrameError::singular;
    for (int d = 0; d < 3; ++d) frame->axes[k][d] = v[d] / length;
    known[k] = true;
    for (int l = k + 1; l < 3; ++l)
      if (frame->periodic[l]) frame->lattice[k][l] = dot3(full, frame->axes[l]);
    frame->lattice[k][k] = length;
    frame->inverse[k] = 1.0 / length;
  }
  if (known[0] || known[1] || known[2]) {
    complete_frame(frame, known);
    set_spacing(frame);
  } else {
    for (int k = 0; k < 3; ++k) {
      frame->spacing[k] = 0.0;
      for (int d = 0; d < 3; ++d) frame->axes[k][d] = k == d ? 1.0 : 0.0;
    }
  }
  return FrameError::none;
}

// Farthest an atom may lie from the brick, in bricks along an axis, and from the origin, in the
// unit of length (beyond it float32 estimates of squared distances would overflow).
constexpr double max_wraps = 1048576.0;  // 2^20
constexpr double max_coordinate = 1e15;

// x = y + w . C, with y (in the frame's axes) in the brick along periodic axes, up to rounding.
// False where x is too far away. x must be finite.
template <typename T>
MOLKERN_HOST_DEVICE bool wrap(const Frame& frame, const T* x, double* y, int32_t* w) {
  const double given[3] = {static_cast<double>(x[0]), static_cast<double>(x[1]),
                           static_cast<double>(x[2])};
  for (int l = 0; l < 3; ++l) y[l] = dot3(given, frame.axes[l]);
  for (int k = 0; k < 3; ++k) {
    const double bricks = floor(y[k] * frame.inverse[k]);
    if (!(fabs(bricks) <= max_wraps) || !(fabs(y[k]) <= max_coordinate)) return false;
    w[k] = static_cast<int32_t>(bricks);
    if (bricks != 0.0)
      for (int l = k; l < 3; ++l) y[l] -= bricks * frame.lattice[k][l];
  }
  return true;
}

// Packs an image offset m, |m[k]| <= bound[k], so that codes of one layout sort like (m0, m1, m2).
// `symmetric - code` is the code of -m.
struct ImageCode {
  int32_t bound[3];
  int32_t position[3];  // of the lowest bit
  int32_t bits;         // altogether
  uint32_t symmetric;

  MOLKERN_HOST_DEVICE uint32_t pack(int32_t m0, int32_t m1, int32_t m2) const {
    return (static_cast<uint32_t>(m0 + bound[0]) << position[0]) |
           (static_cast<uint32_t>(m1 + bound[1]) << position[1]) |
           static_cast<uint32_t>(m2 + bound[2]);
  }
  MOLKERN_HOST_DEVICE void unpack(uint32_t code, int32_t* m) const {
    m[0] = static_cast<int32_t>(code >> position[0]) - bound[0];
    m[1] = static_cast<int32_t>((code >> position[1]) & ((1u << (position[0] - position[1])) - 1)) -
           bound[1];
    m[2] = static_cast<int32_t>(code & ((1u << position[1]) - 1)) - bound[2];
  }
};

// The layout for all images that can hold neighbors within `cutoff` (with slack for rounding) of
// atoms whose wrapped coordinates spread over `extent`. Two bounds on |m[k]|: layer by layer, and
// (distance that an image moves) / (distance of lattice planes). False if 31 bits do not hold them.
MOLKERN_HOST_DEVICE bool image_code(const Frame& frame, double cutoff, const double* extent,
                                    ImageCode* code) {
  const double moved = cutoff + sqrt(dot3(extent, extent));
  double bound[3] = {0.0, 0.0, 0.0};
  for (int k = 0; k < 3; ++k) {
    if (!frame.periodic[k]) continue;
    double reach = cutoff + extent[k];
    for (int l = 0; l < k; ++l) reach += bound[l] * fabs(frame.lattice[l][k]);
    const double by_layer = reach * frame.inverse[k], by_plane = moved / frame.spacing[k];
    bound[k] = floor((by_layer < by_plane ? by_layer : by_plane) * (1.0 + 1e-12));
    if (!(bound[k] <= max_wraps)) return false;
  }
  code->bits = 0;
  for (int k = 2; k >= 0; --k) {
    code->bound[k] = static_cast<int32_t>(bound[k]);
    code->position[k] = code->bits;
    for (uint32_t values = 2u * static_cast<uint32_t>(code->bound[k]); values; values >>= 1)
      ++code->bits;
  }
  if (code->bits > 31) return false;
  code->symmetric = 2 * code->pack(0, 0, 0);
  return true;
}

// A lower bound of a system's edges, for `cutoff` less any error of rounding, so that a senseless
// request ends soon. Bricks that lie within the cutoff of an atom hold one image each of every
// atom; along axes that are not periodic a brick is as long as the atoms' `extent`.
MOLKERN_HOST_DEVICE double fewest_edges(const Frame& frame, double cutoff, const double* extent,
                                        double atoms) {
  double length[3];
  int axes = 0;
  for (int k = 0; k < 3; ++k) {
    length[k] = frame.periodic[k] ? frame.lattice[k][k] : extent[k];
    axes += frame.periodic[k];
  }
  const double radius = cutoff - sqrt(dot3(length, length));
  if (!(radius > 0.0 && atoms > 0.0)) return 0.0;
  // Bricks that meet a ball of that radius (a disk, a line) cover it, and lie within the cutoff.
  const double ball = axes == 3   ? 4.18879 * radius * radius * radius
                      : axes == 2 ? 3.14159 * radius * radius
                      : axes == 1 ? 2.0 * radius
                                  : 1.0;
  return atoms * (atoms * fmax(ball / frame.volume, 1.0) - 1.0);
}

}  // namespace molkern
