// Fibers: stacks that a single host thread switches between.
#pragma once

#include <cstddef>

namespace cuda_emulation {

class Fiber {
 public:
  // The stack that calls; it needs no memory of its own.
  Fiber() = default;
  // A stack that runs entry(argument), which never returns.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, which must be the running one, until another switches back to it.
  void switch_to(Fiber& other);

  // Where a new stack begins.
  [[noreturn]] static void enter(Fiber* self);

 private:
  static void enter_halves(unsigned high, unsigned low);  // of a pointer, for makecontext
  void arrived();

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* memory_ = nullptr;        // a guard page, then the stack
  void* saved_ = nullptr;         // stack pointer, or ucontext_t
  void* fake_stack_ = nullptr;    // AddressSanitizer's
  const void* bottom_ = nullptr;  // of the stack, as AddressSanitizer knows it
  size_t size_ = 0;
};

}  // namespace cuda_emulation
