#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "common/torch_utils.h"
#include "neighbors/neighbors.h"
#include "neighbors/pair.h"

#ifdef MOLKERN_HAS_CUDA_KERNELS
#include <ATen/ops/arange.h>
#include <ATen/ops/cummax.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#endif

namespace molkern {
namespace {

constexpr auto op = "neighbor_list";
constexpr int64_t int32_max = std::numeric_limits<int32_t>::max();

// row_ptr, senders, receivers, shifts, reverse, system, status. The status is a SearchStatus in two
// int64: edges, then error (low half) and index (high half).
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
static_assert(sizeof(SearchStatus) == 2 * sizeof(int64_t));

struct Arguments {
  Tensor positions;     // [N, 3]
  OptionalTensor cell;  // [B, 3, 3]
  OptionalTensor pbc;   // [B, 3]
  OptionalTensor batch;
  double cutoff;
  int64_t systems;
  std::optional<int64_t> capacity;
  SearchAlgorithm algorithm;

  int64_t atoms() const { return positions.size(0); }
  at::TensorOptions indices() const { return positions.options().dtype(at::kInt); }
  Tensor empty(at::IntArrayRef shape, at::ScalarType type = at::kInt) const {
    return empty_result(shape, positions.options().dtype(type));
  }
};

// [last...] or [B, last...] as contiguous [B, last...].
Tensor per_system(const char* name, const Tensor& tensor, at::IntArrayRef last, int64_t systems) {
  std::vector<int64_t> full{systems};
  full.insert(full.end(), last.begin(), last.end());
  TORCH_CHECK_VALUE(tensor.sizes() == last || tensor.sizes() == at::IntArrayRef(full), op, ": ",
                    name, " must have shape ", last, " or ", at::IntArrayRef(full), " for ",
                    systems, " system(s), got ", tensor.sizes());
  return tensor.sizes() == last && systems == 1 ? tensor : tensor.expand(full).contiguous();
}

int64_t count_systems(const Tensor& positions, const OptionalTensor& cell,
                      const OptionalTensor& batch, std::optional<int64_t> given) {
  if (given) {
    TORCH_CHECK_VALUE(*given >= 0 && *given < int32_max, op,
                      ": num_systems must be between 0 and 2^31 - 2, got ", *given);
    TORCH_CHECK_VALUE(batch || *given == 1, op, ": num_systems is ", *given,
                      " but batch is missing: pass the system of each atom");
    return *given;
  }
  if (cell && cell->dim() == 3) return cell->size(0);
  if (!batch) return 1;
  return batch->numel() ? batch->max().item<int64_t>() + 1 : 0;
}

void check_batch_type(const Tensor& positions, const Tensor& batch) {
  TORCH_CHECK_TYPE(batch.scalar_type() == at::kLong || batch.scalar_type() == at::kInt, op,
                   ": batch must be int64 or int32, got ", batch.scalar_type());
  TORCH_CHECK_VALUE(batch.dim() == 1 && batch.size(0) == positions.size(0), op,
                    ": batch must have shape [", positions.size(0), "], one system per atom, got ",
                    batch.sizes());
  TORCH_CHECK_VALUE(batch.device() == positions.device(), op, ": batch is on ", batch.device(),
                    " but positions is on ", positions.device(), "; move one of them with .to()");
}

Arguments check_arguments(const Tensor& x, const OptionalTensor& cell, const OptionalTensor& pbc,
                          const OptionalTensor& batch, double cutoff,
                          std::optional<int64_t> num_systems, std::optional<int64_t> capacity,
                          int64_t algorithm) {
  check_real(op, "positions", x, 2);
  check_size(op, "positions", x, 1, 3);
  TORCH_CHECK_VALUE(x.size(0) < int32_max, op, ": ", x.size(0), " atoms are more than int32 holds");
  TORCH_CHECK_VALUE(std::isfinite(cutoff) && cutoff > 0, op,
                    ": cutoff must be positive and finite, got ", cutoff);
  TORCH_CHECK_VALUE(!capacity || (*capacity >= 0 && *capacity <= int32_max), op,
                    ": capacity must be between 0 and 2^31 - 1, got ", *capacity);
  TORCH_CHECK_VALUE(algorithm >= 0 && algorithm <= 2, op,
                    ": algorithm must be 0 (automatic), 1 (direct) or 2 (cell list), got ",
                    algorithm);
  TORCH_CHECK_VALUE(cell || !pbc, op,
                    ": pbc is given but there is no cell; pass the lattice vectors as cell");
  if (batch) check_batch_type(x, *batch);
  Arguments result{x,        cell,
                   pbc,      batch,
                   cutoff,   count_systems(x, cell, batch, num_systems),
                   capacity, static_cast<SearchAlgorithm>(algorithm)};
  if (!cell) return result;
  check_like(op, "cell", *cell, "positions", x);
  result.cell = per_system("cell", *cell, {3, 3}, result.systems);
  if (!pbc) {
    result.pbc = at::ones({result.systems, 3}, x.options().dtype(at::kBool));
    return result;
  }
  TORCH_CHECK_TYPE(c10::isIntegralType(pbc->scalar_type(), /*includeBool=*/true), op,
                   ": pbc must be bool, got ", pbc->scalar_type());
  TORCH_CHECK_VALUE(pbc->device() == x.device(), op, ": pbc is on ", pbc->device(),
                    " but positions is on ", x.device(), "; move one of them with .to()");
  result.pbc = per_system("pbc", pbc->to(at::kBool), {3}, result.systems);
  return result;
}

template <typename T>
NeighborQuery<T> make_query(const Arguments& a, const int32_t* system_ptr) {
  return {a.positions.const_data_ptr<T>(),
          a.cell ? a.cell->const_data_ptr<T>() : nullptr,
          a.pbc ? reinterpret_cast<const uint8_t*>(a.pbc->const_data_ptr<bool>()) : nullptr,
          system_ptr,
          a.atoms(),
          a.systems,
          a.cutoff,
          a.algorithm};
}

template <typename Index>
void fill_systems(const Tensor& batch, int64_t systems, int32_t* system, int32_t* system_ptr) {
  const Index* index = batch.const_data_ptr<Index>();
  int64_t before = 0;
  system_ptr[0] = 0;
  for (int64_t i = 0; i < batch.numel(); ++i) {
    const int64_t s = index[i];
    TORCH_CHECK_VALUE(s >= before && s < systems, op, ": batch must not decrease and lie in [0, ",
                      systems, "), but batch[", i, "] is ", s, i ? c10::str(" after ", before) : "",
                      "; sort the atoms by system");
    for (; before < s; ++before) system_ptr[before + 1] = static_cast<int32_t>(i);
    system[i] = static_cast<int32_t>(s);
  }
  for (; before < systems; ++before) system_ptr[before + 1] = static_cast<int32_t>(batch.numel());
}

// Fills system [N] and system_ptr [B + 1] from the batch, which is on the CPU.
void fill_systems(const Tensor& batch, int64_t systems, int32_t* system, int32_t* system_ptr) {
  if (batch.scalar_type() == at::kInt)
    fill_systems<int32_t>(batch, systems, system, system_ptr);
  else
    fill_systems<int64_t>(batch, systems, system, system_ptr);
}

// The position of an atom, or nothing where the arguments are not at hand.
std::string position_of(int64_t atom, const Arguments* arguments) {
  if (!arguments) return "";
  const Tensor x = arguments->positions.select(0, atom).cpu().to(at::kDouble);
  const double* p = x.const_data_ptr<double>();
  return c10::str(" (", p[0], ", ", p[1], ", ", p[2], ")");
}

// The same for the volume of a system's cell.
std::string volume_of(int64_t system, const Arguments* arguments) {
  if (!arguments) return "";
  const Tensor cell = arguments->cell->reshape({-1, 3, 3}).select(0, system).cpu().to(at::kDouble);
  const Tensor pbc = arguments->pbc->reshape({-1, 3}).select(0, system).cpu();
  Frame frame;
  make_frame(cell.const_data_ptr<double>(),
             reinterpret_cast<const uint8_t*>(pbc.const_data_ptr<bool>()), &frame);
  return c10::str(" of ", frame.volume);
}

void check_error(const SearchStatus& status, const Arguments* arguments) {
  const int64_t index = status.index;
  switch (status.error) {
    case SearchError::none:
      return;
    case SearchError::position_not_finite:
      TORCH_CHECK_VALUE(false, op, ": the position", position_of(index, arguments), " of atom ",
                        index, " is NaN or infinite");
    case SearchError::cell_not_finite:
      TORCH_CHECK_VALUE(false, op, ": the cell of system ", index, " is NaN or infinite");
    case SearchError::cell_singular:
      TORCH_CHECK_VALUE(false, op, ": the cell of system ", index, " is singular: a volume",
                        volume_of(index, arguments),
                        " is (nearly) zero; pass independent lattice vectors, or pbc=False for "
                        "axes that are not periodic");
    case SearchError::too_many_edges:
      TORCH_CHECK_VALUE(false, op,
                        ": more than 2^31 - 1 edges; lower the cutoff or split the batch");
    case SearchError::shift_overflow:
      TORCH_CHECK_VALUE(false, op, ": atom ", index, " at", position_of(index, arguments),
                        " lies more than 2^20 cells from its cell or 1e15 from the origin, or the "
                        "cutoff reaches over more than 2^31 periodic images; wrap the positions "
                        "into the cell, or lower the cutoff");
    case SearchError::batch_not_sorted:
      if (arguments) {  // says which atom
        std::vector<int32_t> system(arguments->atoms()), system_ptr(arguments->systems + 1);
        fill_systems(arguments->batch->cpu(), arguments->systems, system.data(), system_ptr.data());
      }
      TORCH_CHECK_VALUE(false, op, ": batch must not decrease and lie in [0, num_systems)");
  }
}

// Raises what a search found; `arguments`, if there are any, for the values that were wrong.
void check_status(const SearchStatus& status, int64_t capacity, const Arguments* arguments) {
  check_error(status, arguments);
  TORCH_CHECK_VALUE(status.edges <= capacity, op, ": capacity ", capacity,
                    " is too small: ", status.edges,
                    " edges are needed; pass capacity=", status.edges, " or more");
}

struct Edges {
  Tensor senders, receivers, shifts, reverse;

  Edges(const Arguments& a, int64_t count)
      : senders(a.empty({count})),
        receivers(a.empty({count})),
        shifts(a.empty({a.cell ? count : 0, 3})),
        reverse(a.empty({count})) {}

  NeighborOutput output() const {
    return {senders.mutable_data_ptr<int32_t>(), receivers.mutable_data_ptr<int32_t>(),
            shifts.numel() ? shifts.mutable_data_ptr<int32_t>() : nullptr,
            reverse.mutable_data_ptr<int32_t>(), senders.numel()};
  }
};

Result search_on_cpu(const Arguments& a) {
  const Tensor system = a.empty({a.batch ? a.atoms() : 0});
  std::vector<int32_t> system_ptr{0, static_cast<int32_t>(a.atoms())};
  if (a.batch) {
    system_ptr.resize(a.systems + 1);
    fill_systems(*a.batch, a.systems, system.mutable_data_ptr<int32_t>(), system_ptr.data());
  }
  const Tensor row_ptr = a.empty({a.atoms() + 1});
  const Tensor status_tensor = a.empty({2}, at::kLong);
  SearchStatus status;
  std::unique_ptr<FoundNeighbors> found;
  with_real(a.positions, [&](auto zero) {
    using T = decltype(zero);
    const auto query = make_query<T>(a, system_ptr.data());
    with_isa([&](auto isa) {
      found = search_neighbors_cpu<isa(), T>(query, row_ptr.mutable_data_ptr<int32_t>(), &status,
                                             threads_for(64 * a.atoms()));
    });
  });
  check_status(status, a.capacity.value_or(int32_max), &a);
  std::memcpy(status_tensor.mutable_data_ptr<int64_t>(), &status, sizeof status);
  const Edges edges(a, a.capacity.value_or(status.edges));
  found->write(edges.output());
  return {row_ptr,       edges.senders, edges.receivers, edges.shifts,
          edges.reverse, system,        status_tensor};
}

#ifdef MOLKERN_HAS_CUDA_KERNELS

// First atoms of systems, [B + 1], never decreasing, also where the batch is not sorted.
Tensor system_ptr_on_device(const Arguments& a) {
  if (!a.batch) {
    // Filled without a copy from the host, which could not be captured in a CUDA graph.
    const Tensor ptr = a.empty({2});
    ptr.select(0, 0).fill_(0);
    ptr.select(0, 1).fill_(a.atoms());
    return ptr;
  }
  const Tensor systems = at::arange(a.systems + 1, a.batch->options());
  const Tensor ptr = at::searchsorted(*a.batch, systems, /*out_int32=*/true);
  return std::get<0>(at::cummax(ptr, 0));
}

// Marks a batch that is not sorted or names systems that do not exist in the status.
void check_batch_on_device(const Arguments& a, const Tensor& status) {
  if (!a.batch || !a.atoms()) return;
  const Tensor& batch = *a.batch;
  Tensor wrong = batch.select(0, 0).lt(0).logical_or(batch.select(0, -1).ge(a.systems));
  wrong = wrong.logical_or(batch.slice(0, 1).lt(batch.slice(0, 0, -1)).any());
  const Tensor packed = status.select(0, 1);
  packed.masked_fill_(wrong, static_cast<int64_t>(SearchError::batch_not_sorted));
}

template <typename T>
Result search_on_cuda(const Arguments& a) {
  const Stream stream = current_stream(a.positions);
  const Tensor system_ptr = system_ptr_on_device(a);
  // A copy in any case: a result may not share the memory of an argument.
  const Tensor system =
      a.batch ? a.batch->to(at::kInt, /*non_blocking=*/false, /*copy=*/true) : a.empty({0});
  const Tensor row_ptr = a.empty({a.atoms() + 1});
  const Tensor status_tensor = a.empty({2}, at::kLong);
  const auto query = make_query<T>(a, system_ptr.const_data_ptr<int32_t>());
  const Tensor workspace = a.empty({neighbor_workspace_bytes(query)}, at::kByte);
  auto* status = reinterpret_cast<SearchStatus*>(status_tensor.mutable_data_ptr<int64_t>());
  count_neighbors_cuda(query, workspace.mutable_data_ptr(), row_ptr.mutable_data_ptr<int32_t>(),
                       status, stream);
  check_batch_on_device(a, status_tensor);
  int64_t count = a.capacity.value_or(0);
  if (!a.capacity) {
    const Tensor copy = status_tensor.cpu();
    SearchStatus known;
    std::memcpy(&known, copy.const_data_ptr<int64_t>(), sizeof known);
    check_status(known, int32_max, &a);
    count = known.edges;
  }
  const Edges edges(a, count);
  write_neighbors_cuda(query, workspace.mutable_data_ptr(), row_ptr.const_data_ptr<int32_t>(),
                       status, edges.output(), stream);
  if (a.capacity) {
    // Nothing may read rows that were not written.
    const Tensor written =
        status_tensor.select(0, 0)
            .le(*a.capacity)
            .logical_and(status_tensor.select(0, 1).bitwise_and(0xffffffff).eq(0));
    row_ptr.mul_(written);
  }
  return {row_ptr,       edges.senders, edges.receivers, edges.shifts,
          edges.reverse, system,        status_tensor};
}

#endif

Result neighbor_list(const Tensor& positions, const OptionalTensor& cell, const OptionalTensor& pbc,
                     const OptionalTensor& batch, double cutoff, std::optional<int64_t> num_systems,
                     std::optional<int64_t> capacity, int64_t algorithm) {
  const c10::DeviceGuard guard(positions.device());
  const Arguments arguments =
      check_arguments(positions, cell, pbc, batch, cutoff, num_systems, capacity, algorithm);
#ifdef MOLKERN_HAS_CUDA_KERNELS
  if (on_cuda(positions))
    return positions.scalar_type() == at::kDouble ? search_on_cuda<double>(arguments)
                                                  : search_on_cuda<float>(arguments);
#endif
  return search_on_cpu(arguments);
}

// Raises what a search with a capacity found; waits for the device.
void check_neighbor_status(const Tensor& status_tensor, int64_t capacity) {
  TORCH_CHECK_VALUE(status_tensor.scalar_type() == at::kLong && status_tensor.numel() == 2,
                    "check_neighbor_status: status must be int64 [2], got ",
                    status_tensor.scalar_type(), " ", status_tensor.sizes());
  const Tensor copy = status_tensor.cpu();
  SearchStatus status;
  std::memcpy(&status, copy.const_data_ptr<int64_t>(), sizeof status);
  check_status(status, capacity, nullptr);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "neighbor_list(Tensor positions, Tensor? cell, Tensor? pbc, Tensor? batch, float cutoff, "
      "int? num_systems, int? capacity, int algorithm) -> (Tensor row_ptr, Tensor senders, "
      "Tensor receivers, Tensor shifts, Tensor reverse, Tensor system, Tensor status)");
  library.def("check_neighbor_status(Tensor status, int capacity) -> ()");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("neighbor_list", any_layout<neighbor_list>);
  library.impl("check_neighbor_status", any_layout<check_neighbor_status>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("neighbor_list", any_layout<neighbor_list>);
  library.impl("check_neighbor_status", any_layout<check_neighbor_status>);
}
#endif

}  // namespace molkern
