// What every _op.cpp needs on the torch side: argument checks, dispatch over type, instruction set
// and device, and views of graph tensors. Kernels never include this.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zero.h>
#include <c10/core/DeviceGuard.h>

#include <optional>

#include "common/any_layout.h"
#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Whether the CUDA kernels serve this tensor. In a build that emulates CUDA they serve CPU tensors,
// unless the environment says MOLKERN_EMULATE_CUDA=0.
bool on_cuda(const Tensor& tensor);

// The current stream of the tensor's device.
Stream current_stream(const Tensor& tensor);

// Threads worth their start for so many numbers read or written: at most torch's own setting.
int threads_for(int64_t numbers);

// An uninitialised tensor, for results and for scratch; on the CPU it reuses memory (block_pool.h).
Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options);

// float32 or float64, with the named number of dimensions.
void check_real(const char* op, const char* argument, const Tensor& tensor, int64_t dims);
// The same type and device as a tensor that was checked before.
void check_like(const char* op, const char* argument, const Tensor& tensor, const char* reference,
                const Tensor& other);
void check_size(const char* op, const char* argument, const Tensor& tensor, int64_t dim,
                int64_t size);
// A part of the graph on the device of the data that it is for.
void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& other);
// An int32 vector on the same device.
void check_index(const char* op, const char* argument, const Tensor& tensor, const Tensor& other);

// Within its scope the values of indices are not read by check_values and adjacency in this thread:
// the caller has checked them.
class CheckedIndices {
 public:
  CheckedIndices();
  ~CheckedIndices();
  CheckedIndices(const CheckedIndices&) = delete;

 private:
  const bool before_;
};

// `count` indices, from one on, lie in [0, limit). Costs next to nothing beside a kernel that
// follows them. On a GPU they are not read, which would wait for it.
void check_values(const char* op, const char* argument, const Tensor& indices, int64_t count,
                  int64_t limit, const char* of, int64_t from = 0);
// The pointers of so many rows begin with 0, do not decrease, and end with `entries`, or before if
// `padded`.
void check_rows(const char* op, const char* argument, const Tensor& row_ptr, int64_t rows,
                int64_t entries, bool padded);

// The names of a direction's arguments, for messages.
struct DirectionNames {
  const char *row_ptr, *neighbors, *edges;
};
constexpr DirectionNames from_receivers{"row_ptr", "neighbors (the senders)", "edges"};
constexpr DirectionNames from_senders{"t_row_ptr", "t_neighbors (the receivers)",
                                      "t_edges (the reverse)"};

// A view of one direction of a graph whose neighbors are among so many atoms, its indices checked
// as above. `padded`: there may be entries beyond the last row. `other` is the other direction, if
// it was checked: what both share is not read again.
Adjacency adjacency(const char* op, const DirectionNames& names, const Tensor& row_ptr,
                    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& like,
                    int64_t atoms, bool padded, const Adjacency* other = nullptr);

// The numbers of a tensor, or null where there is none.
template <typename T>
const T* data(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// Calls function(T{}) with T = float or double, after the tensor's type.
template <typename Function>
void with_real(const Tensor& tensor, Function&& function) {
  if (tensor.scalar_type() == at::kDouble)
    function(double{});
  else
    function(float{});
}

}  // namespace molkern
