// Sums over triplets on the GPU: which kernels sum which atoms.
#include <limits>

#include "triplets/triplets_device.cuh"

namespace molkern {
namespace {

constexpr int role_threads = 256;

template <typename T>
TripletArguments<T> arguments(const TripletForm& form, const TripletGraph& graph,
                              const TripletInputs<T>& in) {
  return {form, graph, {in.x, nullptr}, {in.q, nullptr}, {in.v, nullptr}, {in.w, nullptr}};
}

template <typename T>
TripletArguments<Dual<T>> arguments(const TripletForm& form, const TripletGraph& graph,
                                    const TripletInputs<T>& in, const TripletInputs<T>& h) {
  return {form, graph, {in.x, h.x}, {in.q, h.q}, {in.v, h.v}, {in.w, h.w}};
}

// v += v_out, the parts of an edge's two roles. Must move: 9 numbers per edge.
template <typename T>
__global__ void __launch_bounds__(role_threads)
    triplet_add_roles(const T* __restrict__ v_out, T* __restrict__ v, int64_t count) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k < count) v[k] += v_out[k];
}

template <typename T>
void add_roles(const TripletGradients<T>& out, int64_t edges, Stream stream) {
  if (edges == 0) return;
  launch("triplet_add_roles", triplet_add_roles<T>, dim3(blocks_for(3 * edges, role_threads)),
         dim3(role_threads), 0, stream, static_cast<const T*>(out.v_out), out.v, 3 * edges);
}

// Whether there may be atoms that are summed directly, or by moments; says in the form which.
template <typename N>
struct Methods {
  bool direct, moments;
  explicit Methods(TripletForm& form) {
    if (!moments_fit<N>(form)) form.moments_from = std::numeric_limits<int64_t>::max();
    direct = form.moments_from > 0;
    moments = form.moments_from <= std::numeric_limits<int32_t>::max() - 1;
  }
};

template <typename N>
void all_values(TripletArguments<N> in, ValueOf<N>* y, Stream stream) {
  const Methods<N> methods(in.form);
  if (methods.direct) direct_values(in, y, stream);
  if (methods.moments) moment_values(in, y, stream);
}

template <typename N>
void all_gradients(TripletArguments<N> in, const ValueOf<N>* g,
                   const TripletGradients<ValueOf<N>>& out, Stream stream) {
  const Methods<N> methods(in.form);
  if (methods.direct) direct_gradients(in, g, out, stream);
  if (methods.moments) moment_gradients(in, g, out, stream);
  add_roles(out, in.graph.edges, stream);
  if (out.w) weight_gradients(in, g, out.w_parts, out.w, stream);
}

}  // namespace

template <typename T>
void triplet_sum_cuda(const TripletForm& form, const TripletGraph& graph,
                      const TripletInputs<T>& inputs, T* y, Stream stream) {
  all_values(arguments(form, graph, inputs), y, stream);
}

template <typename T>
void triplet_sum_grad_cuda(const TripletForm& form, const TripletGraph& graph,
                           const TripletInputs<T>& inputs, const T* g,
                           const TripletGradients<T>& gradients, Stream stream) {
  all_gradients(arguments(form, graph, inputs), g, gradients, stream);
}

template <typename T>
void triplet_sum_hvp_cuda(const TripletForm& form, const TripletGraph& graph,
                          const TripletInputs<T>& inputs, const TripletInputs<T>& direction,
                          const T* g, T* tg, const TripletGradients<T>& products, Stream stream) {
  const TripletArguments<Dual<T>> in = arguments(form, graph, inputs, direction);
  all_values(in, tg, stream);
  all_gradients(in, g, products, stream);
}

#define MOLKERN_INSTANTIATE(T)                                                            \
  template void triplet_sum_cuda<T>(const TripletForm&, const TripletGraph&,              \
                                    const TripletInputs<T>&, T*, Stream);                 \
  template void triplet_sum_grad_cuda<T>(const TripletForm&, const TripletGraph&,         \
                                         const TripletInputs<T>&, const T*,               \
                                         const TripletGradients<T>&, Stream);             \
  template void triplet_sum_hvp_cuda<T>(const TripletForm&, const TripletGraph&,          \
                                        const TripletInputs<T>&, const TripletInputs<T>&, \
                                        const T*, T*, const TripletGradients<T>&, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
