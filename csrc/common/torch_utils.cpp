#include "common/torch_utils.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/block_pool.h"
#include "common/grain.h"
#include "common/parallel.h"

#ifdef MOLKERN_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#ifdef MOLKERN_EMULATE_CUDA
namespace cuda_emulation {
bool wanted();
}
#endif

namespace molkern {

bool on_cuda([[maybe_unused]] const Tensor& tensor) {
#if defined(MOLKERN_EMULATE_CUDA)
  return cuda_emulation::wanted();
#elif defined(MOLKERN_WITH_CUDA)
  return tensor.is_cuda();
#else
  return false;
#endif
}

Stream current_stream([[maybe_unused]] const Tensor& tensor) {
#ifdef MOLKERN_WITH_CUDA
  return c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream();
#else
  return nullptr;
#endif
}

int threads_for(int64_t numbers) {
  const int64_t worth = numbers / thread_grain();
  return static_cast<int>(std::clamp<int64_t>(worth, 1, at::get_num_threads()));
}

namespace {

// Results that reuse memory are tensors like any other, which can grow: their storages have an
// allocator of their own. Torch does not know it, and nothing else is allocated by it.
class ResultAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const data = bytes ? block_pool().take(bytes) : nullptr;
    if (data) tell_profiler(data, static_cast<int64_t>(bytes));
    return {data, data, &give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

 private:
  // So that torch's profiler counts these blocks as it counts its own.
  static void tell_profiler(void* data, int64_t bytes) {
    if (c10::memoryProfilingEnabled())
      c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::kCPU));
  }
  static void give_back(void* data) {
    if (!data) return;
    tell_profiler(data, -static_cast<int64_t>(BlockPool::size_of(data)));
    block_pool().give_back(data);
  }
};

ResultAllocator& result_allocator() {
  static ResultAllocator* const allocator = new ResultAllocator;
  return *allocator;
}

}  // namespace

Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::empty(sizes, options);
  const auto type = c10::typeMetaToScalarType(options.dtype());
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  constexpr size_t worth_it = 1024;  // malloc has a fast way for what is smaller
  // Past the dispatcher, whose time counts for small molecules.
  if (bytes < worth_it) return at::detail::empty_cpu(sizes, type);
  constexpr auto keys = c10::DispatchKeySet(c10::DispatchKey::CPU);
  return at::detail::empty_generic(sizes, &result_allocator(), keys, type, std::nullopt);
}

void check_real(const char* op, const char* argument, const Tensor& tensor, int64_t dims) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, op,
                   ": ", argument, " must be float32 or float64, got ", tensor.scalar_type(),
                   "; convert it with .float()");
  TORCH_CHECK_VALUE(tensor.dim() == dims, op, ": ", argument, " must have ", dims,
                    " dimension(s), got shape ", tensor.sizes());
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const char* reference,
                const Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, ": ", argument, " is ",
                   tensor.scalar_type(), " but ", reference, " is ", other.scalar_type(),
                   "; convert one of them with .to()");
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", argument, " is on ",
                    tensor.device(), " but ", reference, " is on ", other.device(),
                    "; move one of them with .to()");
}

void check_size(const char* op, const char* argument, const Tensor& tensor, int64_t dim,
                int64_t size) {
  TORCH_CHECK_VALUE(tensor.size(dim) == size, op, ": ", argument, " must have size ", size,
                    " in dimension ", dim, ", got shape ", tensor.sizes());
}

void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& other) {
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", argument, " is on ",
                    tensor.device(), " but the data for the graph is on ", other.device(),
                    "; move one of them with .to()");
}

void check_index(const char* op, const char* argument, const Tensor& tensor, const Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kInt, op, ": ", argument, " must be int32, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1, op, ": ", argument, " must be a vector, got shape ",
                    tensor.sizes());
  check_device(op, argument, tensor, other);
}

namespace {

thread_local bool indices_are_checked = false;

bool values_are_read(const Tensor& indices) { return indices.is_cpu() && !indices_are_checked; }

// The highest bit is set if any number is negative or above `last`, which is -1 or more.
uint32_t outside(const int32_t* values, int64_t count, int32_t last) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t value = static_cast<uint32_t>(values[k]);
    bits |= value | (static_cast<uint32_t>(last) - value);
  }
  return bits;
}

// Likewise if any number is negative or less than the one before.
uint32_t falling(const int32_t* values, int64_t count) {
  uint32_t bits = 0;
  for (int64_t k = 1; k < count; ++k) {
    const uint32_t before = static_cast<uint32_t>(values[k - 1]);
    bits |= before | (static_cast<uint32_t>(values[k]) - before);
  }
  return bits;
}

// Whether find(first, count), which gives bits as above, finds nothing in shares of 0 ... count.
template <typename Find>
bool none_of(int64_t count, Find&& find) {
  const int threads = threads_for(count);
  if (threads == 1) return find(0, count) >> 31 == 0;
  std::atomic<uint32_t> bits{0};
  parallel_for(threads, threads, [&](int64_t share) {
    const int64_t first = count * share / threads, last = count * (share + 1) / threads;
    bits.fetch_or(find(first, last - first), std::memory_order_relaxed);
  });
  return bits >> 31 == 0;
}

}  // namespace

CheckedIndices::CheckedIndices() : before_(std::exchange(indices_are_checked, true)) {}
CheckedIndices::~CheckedIndices() { indices_are_checked = before_; }

void check_values(const char* op, const char* argument, const Tensor& indices, int64_t count,
                  int64_t limit, const char* of, int64_t from) {
  if (!values_are_read(indices)) return;
  const int32_t* values = indices.const_data_ptr<int32_t>() + from;
  const int32_t last = static_cast<int32_t>(std::min<int64_t>(limit, int64_t{1} << 31) - 1);
  if (none_of(count, [=](int64_t k, int64_t n) { return outside(values + k, n, last); })) return;
  int64_t k = 0;
  while (values[k] >= 0 && values[k] <= last) ++k;
  TORCH_CHECK_VALUE(false, op, ": ", argument, " at ", k, " is ", values[k], ", but there are ",
                    limit, " ", of, limit ? c10::str(" (0 to ", last, ")") : "");
}

void check_rows(const char* op, const char* argument, const Tensor& row_ptr, int64_t rows,
                int64_t entries, bool padded) {
  if (!values_are_read(row_ptr)) return;
  const int32_t* ptr = row_ptr.const_data_ptr<int32_t>();
  TORCH_CHECK_VALUE(ptr[0] == 0, op, ": ", argument, " must begin with 0, got ", ptr[0]);
  if (!none_of(rows, [=](int64_t k, int64_t n) { return falling(ptr + k, n + 1); })) {
    int64_t k = 1;
    while (ptr[k] >= ptr[k - 1]) ++k;
    TORCH_CHECK_VALUE(false, op, ": ", argument, " must not decrease, but at ", k, " is ", ptr[k],
                      " after ", ptr[k - 1]);
  }
  const int64_t last = ptr[rows];
  TORCH_CHECK_VALUE(padded ? last <= entries : last == entries, op, ": ", argument,
                    padded ? " must not end beyond " : " must end with ", entries,
                    ", the number of entries, got ", last);
}

Adjacency adjacency(const char* op, const DirectionNames& names, const Tensor& row_ptr,
                    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& like,
                    int64_t atoms, bool padded, const Adjacency* other) {
  check_index(op, names.row_ptr, row_ptr, like);
  check_index(op, names.neighbors, neighbors, like);
  if (edges) {
    check_index(op, names.edges, *edges, like);
    check_size(op, names.edges, *edges, 0, neighbors.numel());
  }
  TORCH_CHECK_VALUE(row_ptr.numel() >= 1, op, ": ", names.row_ptr, " must have at least one entry");
  const int64_t rows = row_ptr.numel() - 1;
  const Adjacency graph{row_ptr.const_data_ptr<int32_t>(), neighbors.const_data_ptr<int32_t>(),
                        edges ? edges->const_data_ptr<int32_t>() : nullptr, rows};
  const bool shared = other && other->row_ptr == graph.row_ptr && other->rows == rows &&
                      other->neighbors == graph.neighbors;
  if (!shared) check_rows(op, names.row_ptr, row_ptr, rows, neighbors.numel(), padded);
  if (!values_are_read(neighbors)) return graph;
  const int64_t entries = graph.row_ptr[rows];
  if (!shared || rows != atoms)  // then the other direction has another number of atoms
    check_values(op, names.neighbors, neighbors, entries, atoms, "atoms");
  if (edges) check_values(op, names.edges, *edges, entries, neighbors.numel(), "edges");
  return graph;
}

}  // namespace molkern
