#include "common/torch_utils.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "common/block_pool.h"
#include "common/grain.h"

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
  TORCH_CHECK_VALUE(tensor.is_contiguous(), op, ": ", argument, " must be contiguous");
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
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.is_contiguous(), op, ": ", argument,
                    " must be a contiguous vector, got shape ", tensor.sizes());
  check_device(op, argument, tensor, other);
}

Adjacency adjacency(const char* op, const Tensor& row_ptr, const Tensor& neighbors,
                    const OptionalTensor& edges, const Tensor& like) {
  check_index(op, "row_ptr", row_ptr, like);
  check_index(op, "neighbors", neighbors, like);
  TORCH_CHECK_VALUE(row_ptr.numel() >= 1, op, ": row_ptr must have at least one entry");
  if (edges) {
    check_index(op, "edges", *edges, like);
    check_size(op, "edges", *edges, 0, neighbors.numel());
  }
  return {row_ptr.const_data_ptr<int32_t>(), neighbors.const_data_ptr<int32_t>(),
          edges ? edges->const_data_ptr<int32_t>() : nullptr, row_ptr.numel() - 1};
}

}  // namespace molkern
