#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <new>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define MOLKERN_FIBER_ASSEMBLY
#else
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t stack_bytes = 512 * 1024;
#else
constexpr size_t stack_bytes = 128 * 1024;
#endif

Fiber* arriving = nullptr;  // the fiber that a switch goes to
Fiber* leaving = nullptr;

}  // namespace

#ifdef MOLKERN_FIBER_ASSEMBLY

// Saves the registers that a function must preserve on this stack, its pointer to *save, and goes
// on with the stack `load`, which was left the same way.
extern "C" void molkern_switch_stack(void** save, void* load) __attribute__((visibility("hidden")));

#ifdef __x86_64__
asm(R"(
  .text
  .p2align 4
  .hidden molkern_switch_stack
  .globl molkern_switch_stack
  .type molkern_switch_stack, @function
molkern_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size molkern_switch_stack, .-molkern_switch_stack
)");
constexpr int saved_words = 7, return_word = 6, spare_words = 3;  // a call leaves rsp odd
#else
asm(R"(
  .text
  .p2align 4
  .hidden molkern_switch_stack
  .globl molkern_switch_stack
  .type molkern_switch_stack, %function
molkern_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size molkern_switch_stack, .-molkern_switch_stack
)");
constexpr int saved_words = 20, return_word = 11, spare_words = 2;
#endif

namespace {
void run_arriving() { Fiber::enter(arriving); }
}  // namespace

#endif

Fiber::Fiber(void (*entry)(void*), void* argument) : entry_(entry), argument_(argument) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_ = stack_bytes;
  void* memory =
      mmap(nullptr, page + size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, page, PROT_NONE);
  bottom_ = memory_ + page;
#ifdef MOLKERN_FIBER_ASSEMBLY
  // As if run_arriving had just been called from nowhere.
  constexpr int words_in_use = saved_words + spare_words;
  void** words = reinterpret_cast<void**>(memory_ + page + size_) - words_in_use;
  std::fill_n(words, words_in_use, nullptr);
  words[return_word] = reinterpret_cast<void*>(&run_arriving);
  saved_ = words;
#else
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = memory_ + page;
  context->uc_stack.ss_size = size_;
  context->uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(context, reinterpret_cast<void (*)()>(&Fiber::enter_halves), 2,
              static_cast<unsigned>(self >> 16 >> 16), static_cast<unsigned>(self));
  saved_ = context;
#endif
}

Fiber::~Fiber() {
#ifndef MOLKERN_FIBER_ASSEMBLY
  delete static_cast<ucontext_t*>(saved_);
#endif
  if (!memory_) return;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);
#endif
  munmap(memory_, static_cast<size_t>(sysconf(_SC_PAGESIZE)) + size_);
}

void Fiber::enter(Fiber* self) {
  self->arrived();
  self->entry_(self->argument_);
  __builtin_trap();  // an entry never returns
}

void Fiber::enter_halves(unsigned high, unsigned low) {
  enter(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 16 << 16 | low));
}

void Fiber::switch_to(Fiber& other) {
  arriving = &other;
  leaving = this;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.size_);
#endif
#ifdef MOLKERN_FIBER_ASSEMBLY
  molkern_switch_stack(&saved_, other.saved_);
#else
  if (!saved_) saved_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(saved_), static_cast<ucontext_t*>(other.saved_));
#endif
  arrived();
}

void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  // What was left tells its bounds: of the calling stack they are not known otherwise.
  __sanitizer_finish_switch_fiber(fake_stack_, &leaving->bottom_, &leaving->size_);
#endif
}

}  // namespace cuda_emulation
