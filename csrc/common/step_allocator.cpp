#include "common/step_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "common/step_memory.h"

namespace molkern {

namespace {

class StepAllocator final : public c10::Allocator {
 public:
  explicit StepAllocator(c10::Allocator* base) : base_(base) {}

  c10::DataPtr allocate(size_t bytes) override {
    StepMemory* const memory = StepMemory::current();
    if (!memory || bytes == 0) return base_->allocate(bytes);
    void* const data = memory->take(bytes);
    return {data, data, &StepMemory::give_back, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

 private:
  c10::Allocator* const base_;
};

}  // namespace

void install_step_allocator() {
  // Never destroyed, for tensors may outlive everything.
  static StepAllocator* const installed = [] {
    auto* allocator = new StepAllocator(c10::GetCPUAllocator());
    c10::SetCPUAllocator(allocator);
    return allocator;
  }();
  (void)installed;
}

}  // namespace molkern
