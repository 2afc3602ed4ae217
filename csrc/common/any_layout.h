// Operators take tensors of any layout; their kernels see contiguous ones. This is the one place
// where copies are made for that: library.impl("name", any_layout<kernel>).
#pragma once

#include <ATen/core/Tensor.h>

#include <forward_list>
#include <optional>
#include <type_traits>

namespace molkern {

// The arguments of one call: those that are contiguous as they are, copies of the others.
class ContiguousArguments {
 public:
  const at::Tensor& operator()(const at::Tensor& given) {
    return fits(given) ? given : *copy_of(given);
  }
  const std::optional<at::Tensor>& operator()(const std::optional<at::Tensor>& given) {
    return !given || fits(*given) ? given : copy_of(*given);
  }
  template <typename Other>
  Other& operator()(Other& other) {
    return other;
  }

 private:
  struct Copy {
    at::Tensor source;
    std::optional<at::Tensor> copy;
  };

  static bool fits(const at::Tensor& given) { return !given.defined() || given.is_contiguous(); }

  // Arguments of the same numbers share a copy: a graph that is its own transpose remains one.
  const std::optional<at::Tensor>& copy_of(const at::Tensor& given) {
    for (const Copy& known : copies_)
      if (is_same(known.source, given)) return known.copy;
    copies_.push_front({given, given.contiguous()});
    return copies_.front().copy;
  }

  static bool is_same(const at::Tensor& a, const at::Tensor& b) {
    return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() &&
           a.sizes() == b.sizes() && a.strides() == b.strides();
  }

  std::forward_list<Copy> copies_;
};

template <auto& kernel, typename Signature>
struct AnyLayout;

template <auto& kernel, typename Result, typename... Arguments>
struct AnyLayout<kernel, Result(Arguments...)> {
  static Result call(Arguments... arguments) {
    ContiguousArguments contiguous;
    return kernel(contiguous(arguments)...);
  }
};

// The kernel for tensors of any layout, as a pointer to a function.
template <auto& kernel>
constexpr auto* any_layout = &AnyLayout<kernel, std::remove_reference_t<decltype(kernel)>>::call;

}  // namespace molkern
