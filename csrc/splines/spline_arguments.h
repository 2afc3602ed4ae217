// The torch side of what operators with splines have in common: arguments, checked once. For
// _op.cpp files only.
#pragma once

#include <cmath>

#include "common/torch_utils.h"
#include "splines/spline_cfconv.h"

namespace molkern {

inline void check_knots(const char* op, double start, double stop, int64_t intervals) {
  TORCH_CHECK_VALUE(std::isfinite(start) && std::isfinite(stop) && start < stop, op,
                    ": start and stop must be finite and ascend, got ", start, " and ", stop);
  TORCH_CHECK_VALUE(intervals >= 1 && intervals < (int64_t{1} << 24), op,
                    ": there must be from 1 to ", (1 << 24) - 1, " intervals, got ", intervals,
                    " (of a table: its rows less the degree)");
}

// Features, a table for them, and the edges of a graph with their distances.
struct SplineArguments {
  const Tensor &x, &table, &distances;
  Adjacency receivers, senders;
  const int32_t* reverse;  // of a symmetric graph, whose rows are the same from both sides
  double start, stop;
  int degree;
  bool zero_beyond;
  int64_t intervals;

  SplineArguments(const char* op, const Tensor& x_in, const Tensor& table_in,
                  const Tensor& distances_in, const Tensor& row_ptr, const Tensor& neighbors,
                  const OptionalTensor& edges, const Tensor& t_row_ptr, const Tensor& t_neighbors,
                  const OptionalTensor& t_edges, double start_in, double stop_in, int64_t degree_in,
                  bool zero_in, bool padded)
      : x(x_in),
        table(table_in),
        distances(distances_in),
        start(start_in),
        stop(stop_in),
        degree(static_cast<int>(degree_in)),
        zero_beyond(zero_in) {
    TORCH_CHECK_VALUE(degree_in == 3 || degree_in == 5, op, ": degree must be 3 or 5, got ",
                      degree_in);
    check_real(op, "x", x, 2);
    check_real(op, "table", table, 2);
    check_like(op, "table", table, "x", x);
    check_size(op, "table", table, 1, x.size(1));
    intervals = table.size(0) - degree;
    check_knots(op, start, stop, intervals);
    check_real(op, "distances", distances, 1);
    check_like(op, "distances", distances, "x", x);
    receivers =
        adjacency(op, from_receivers, row_ptr, neighbors, edges, x, t_row_ptr.numel() - 1, padded);
    senders = adjacency(op, from_senders, t_row_ptr, t_neighbors, t_edges, x, receivers.rows,
                        padded, &receivers);
    check_size(op, "t_neighbors", t_neighbors, 0, neighbors.numel());
    const bool symmetric = !edges && t_edges && receivers.row_ptr == senders.row_ptr &&
                           receivers.neighbors == senders.neighbors;
    reverse = symmetric ? senders.edges : nullptr;
    check_size(op, "distances", distances, 0, neighbors.numel());
    check_size(op, "x", x, 0, senders.rows);
  }

  template <typename T>
  SplineFilters<T> filters() const {
    const SplineGrid<T> grid{T(start), T(stop), T(static_cast<double>(intervals) / (stop - start)),
                             static_cast<int32_t>(intervals), zero_beyond};
    return {grid, table.const_data_ptr<T>(), distances.const_data_ptr<T>(), degree, x.size(1)};
  }

  void check_cotangent(const char* op, const Tensor& g, int64_t columns) const {
    check_real(op, "g", g, 2);
    check_like(op, "g", g, "x", x);
    check_size(op, "g", g, 0, receivers.rows);
    check_size(op, "g", g, 1, columns);
  }

  // A part of a direction, of the shape of an argument, or none.
  void check_part(const char* op, const char* name, const OptionalTensor& part,
                  const Tensor& like) const {
    if (!part) return;
    check_real(op, name, *part, like.dim());
    check_like(op, name, *part, "x", x);
    for (int64_t dim = 0; dim < like.dim(); ++dim) check_size(op, name, *part, dim, like.size(dim));
  }

  // Row pointers, edges, senders and receivers of the edges by interval, in one tensor.
  SplineBins bins(const char* op, const OptionalTensor& tensor) const {
    TORCH_CHECK_VALUE(tensor, op, ": the gradient of the table needs the edges by interval");
    check_index(op, "bins", *tensor, x);
    const int64_t edges = distances.numel();
    check_size(op, "bins", *tensor, 0, intervals + 1 + 3 * edges);
    const int32_t* ptr = tensor->const_data_ptr<int32_t>();
    const int32_t* first = ptr + intervals + 1;
    check_rows(op, "bins (their rows)", *tensor, intervals, edges, /*padded=*/true);
    if (tensor->is_cpu()) {
      const int64_t from = intervals + 1, used = ptr[intervals];
      check_values(op, "bins (their edges)", *tensor, used, edges, "edges", from);
      check_values(op, "bins (their senders)", *tensor, used, senders.rows, "atoms", from + edges);
      check_values(op, "bins (their receivers)", *tensor, used, receivers.rows, "atoms",
                   from + 2 * edges);
    }
    return {ptr, first, first + edges, first + 2 * edges, edges};
  }
};

}  // namespace molkern
