#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulation {
namespace {

constexpr unsigned poison = 0x7ffbadba;  // NaN as float and as double, far out as an index
constexpr size_t shared_limit = 48 * 1024;

enum class State { fresh, ready, at_barrier, exchanging, exited };

struct Thread {
  State state = State::fresh;
  Fiber* fiber = nullptr;
  uint3 index{};
  int number = 0;
  int line = 0;       // where it waits
  int predicate = 0;  // of a counting barrier
  Exchange kind{};    // of the exchange it waits for, like the three below
  unsigned mask = 0;
  int source = 0;
  uint64_t value = 0;  // brought; then received
};

// Lanes by their bits, so that an exchange need not look at each of them every time.
struct Warp {
  unsigned running = 0;  // present, and not exited
  unsigned exchanging = 0;
};

struct Worker {
  Fiber fiber;
  Thread* thread = nullptr;
  explicit Worker(void (*entry)(void*)) : fiber(entry, this) {}
};

// The launch that is running. One at a time: `running` guards everything here.
struct Launch {
  std::mutex running;
  std::set<std::string> names;
  const char* kernel = "";
  void (*body)(const void*) = nullptr;
  const void* closure = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> order;
  Thread* current = nullptr;
  Fiber scheduler;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<Worker*> idle;
  int exited = 0, waiting = 0;
  int barrier_sum = 0, barrier_line = 0;
  std::exception_ptr error;
  uint64_t block_serial = 0;
  uint64_t random_state = 0;  // 0: natural order
  uint64_t launches = 0;
  size_t dynamic_limit = shared_limit, dynamic_bytes = 0, static_bytes = 0;
  void* dynamic = nullptr;
};

Launch* const instance = new Launch;  // never destroyed: stacks may still hold frames
Launch& launch() { return *instance; }

uint64_t random_below(uint64_t bound) {  // splitmix64
  uint64_t z = launch().random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (z ^ z >> 31) % bound;
}

template <typename T>
void shuffle_order(std::vector<T>& order) {
  for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random_below(k)]);
}

[[noreturn]] void fail(const std::string& what) {
  const Launch& now = launch();
  const auto show = [](unsigned x, unsigned y, unsigned z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  throw std::runtime_error(std::string("CUDA emulation: kernel ") + now.kernel + ", block " +
                           show(blockIdx.x, blockIdx.y, blockIdx.z) + ", thread " +
                           show(threadIdx.x, threadIdx.y, threadIdx.z) + ": " + what);
}

void fill_with_poison(void* memory, size_t bytes) {
  char* target = static_cast<char*>(memory);
  for (size_t k = 0; k < bytes; k += sizeof poison)
    std::memcpy(target + k, &poison, std::min(sizeof poison, bytes - k));
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes)) throw std::bad_alloc();
  return memory;
}

void give_way() {
  Thread* thread = launch().current;
  thread->fiber->switch_to(launch().scheduler);
}

// Lanes of a warp lie side by side in `threads`; the last warp may lack some.
Thread* lane_of(const Thread& thread, int lane) {
  const size_t number = static_cast<size_t>(thread.number / 32 * 32 + lane);
  return number < launch().threads.size() ? &launch().threads[number] : nullptr;
}

Warp& warp_of(const Thread& thread) {
  return launch().warps[static_cast<size_t>(thread.number / 32)];
}
unsigned bit_of(const Thread& thread) { return 1u << thread.number % 32; }

void finish_thread(Thread& thread) {
  thread.state = State::exited;
  ++launch().exited;
  warp_of(thread).running &= ~bit_of(thread);
  if (!warp_of(thread).exchanging) return;
  for (int lane = 0; lane < 32; ++lane) {
    const Thread* other = lane_of(thread, lane);
    if (other && other->state == State::exchanging && other->mask >> thread.number % 32 & 1)
      fail("it exits while lane " + std::to_string(lane) + " waits for it in an exchange at line " +
           std::to_string(other->line));
  }
}

// A worker runs thread after thread on one stack, for as long as they end without waiting.
void work(void* data) {
  auto& worker = *static_cast<Worker*>(data);
  for (;;) {
    Launch& now = launch();
    try {
      now.body(now.closure);
      finish_thread(*worker.thread);
    } catch (...) {
      now.error = std::current_exception();
    }
    now.idle.push_back(&worker);
    worker.fiber.switch_to(now.scheduler);
  }
}

void resume(Thread& thread) {
  Launch& now = launch();
  if (thread.state == State::fresh) {
    if (now.idle.empty()) {
      now.workers.push_back(std::make_unique<Worker>(work));
      now.idle.push_back(now.workers.back().get());
    }
    Worker* worker = now.idle.back();
    now.idle.pop_back();
    worker->thread = &thread;
    thread.fiber = &worker->fiber;
    thread.state = State::ready;
  }
  now.current = &thread;
  threadIdx = thread.index;
  now.scheduler.switch_to(*thread.fiber);
  if (now.error) std::rethrow_exception(std::exchange(now.error, nullptr));
}

[[noreturn]] void report_deadlock() {
  const Launch& now = launch();
  const Thread *at_barrier = nullptr, *exchanging = nullptr;
  for (const Thread& thread : now.threads) {
    if (thread.state == State::at_barrier && !at_barrier) at_barrier = &thread;
    if (thread.state == State::exchanging && !exchanging) exchanging = &thread;
  }
  const Thread& first = exchanging ? *exchanging : *at_barrier;
  threadIdx = first.index;
  const std::string line = std::to_string(first.line);
  const std::string rest = "; of " + std::to_string(now.threads.size()) + " threads " +
                           std::to_string(now.waiting) + " wait at a barrier and " +
                           std::to_string(now.exited) + " have exited";
  if (exchanging)
    fail("deadlock: it waits at line " + line +
         " for lanes that wait elsewhere or with another mask" + rest);
  fail("deadlock: the barrier at line " + line + " is not reached by all threads" + rest);
}

void run_block(dim3 block) {
  Launch& now = launch();
  ++now.block_serial;
  now.exited = now.waiting = now.barrier_sum = 0;
  now.static_bytes = 0;
  if (now.dynamic) fill_with_poison(now.dynamic, now.dynamic_bytes);
  int number = 0;
  now.warps.assign((now.threads.size() + 31) / 32, Warp{});
  for (Thread& thread : now.threads) {
    const unsigned k = static_cast<unsigned>(number);
    thread = Thread{};
    thread.index = {k % block.x, k / block.x % block.y, k / block.x / block.y};
    thread.number = number++;
    warp_of(thread).running |= bit_of(thread);
  }
  while (now.exited < number) {
    bool progress = false;
    if (now.random_state) shuffle_order(now.order);
    for (const int k : now.order) {
      Thread& thread = now.threads[static_cast<size_t>(k)];
      if (thread.state != State::fresh && thread.state != State::ready) continue;
      progress = true;
      resume(thread);
    }
    if (!progress) report_deadlock();
  }
}

void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > 1024 || block.z > 64)
    fail("a block of " + std::to_string(threads) + " threads cannot be launched");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    fail("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
         std::to_string(grid.z) + " blocks cannot be launched");
  if (shared_bytes > launch().dynamic_limit)
    fail(std::to_string(shared_bytes) + " bytes of dynamic shared memory are more than " +
         std::to_string(launch().dynamic_limit));
}

void prepare(dim3 block, size_t shared_bytes) {
  Launch& now = launch();
  now.threads.assign(size_t{block.x} * block.y * block.z, Thread{});
  now.order.resize(now.threads.size());
  std::iota(now.order.begin(), now.order.end(), 0);
  ++now.launches;
  const char* seed = std::getenv("MOLKERN_EMULATION_SEED");
  const uint64_t number = seed ? std::strtoull(seed, nullptr, 10) : 0;
  now.random_state = number ? (number << 32) + now.launches : 0;
  // A block of its own, and of just this size, so that AddressSanitizer sees accesses beyond it.
  now.dynamic = shared_bytes ? allocate(shared_bytes) : nullptr;
  now.dynamic_bytes = shared_bytes;
}

void run_grid(dim3 grid, dim3 block) {
  Launch& now = launch();
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order;
  if (now.random_state) {
    order.resize(blocks);
    std::iota(order.begin(), order.end(), uint64_t{0});
    shuffle_order(order);
  }
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint64_t b = order.empty() ? k : order[k];
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(block);
  }
}

bool all_here(const Thread& thread) {
  if (thread.mask & ~warp_of(thread).exchanging) return false;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(thread.mask >> lane & 1)) continue;
    if (lane_of(thread, lane)->mask != thread.mask) return false;
  }
  return true;
}

void check_exchange(const Thread& thread) {
  if (!(thread.mask & bit_of(thread))) fail("its own lane is not in the mask it gives");
  if (!(thread.mask & ~warp_of(thread).running)) return;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(thread.mask >> lane & 1)) continue;
    const Thread* other = lane_of(thread, lane);
    const char* state = !other                          ? "is absent"
                        : other->state == State::exited ? "has exited"
                                                        : nullptr;
    if (state)
      fail("at line " + std::to_string(thread.line) + ", the mask of a warp exchange names lane " +
           std::to_string(lane) + ", which " + state);
  }
}

uint64_t received(const Thread& thread, const uint64_t (&values)[32]) {
  if (thread.kind == Exchange::shuffle) {
    if (thread.mask >> thread.source & 1) return values[thread.source];
    return uint64_t{poison} << 32 | poison;
  }
  uint64_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(thread.mask >> lane & 1)) continue;
    const bool counts =
        thread.kind == Exchange::match ? values[lane] == thread.value : values[lane] != 0;
    if (counts) result |= uint64_t{1} << lane;
  }
  return result;
}

void complete(Thread& last) {
  warp_of(last).exchanging &= ~last.mask;
  uint64_t values[32] = {}, results[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    const Thread& thread = *lane_of(last, lane);
    if (thread.kind != last.kind || thread.line != last.line)
      fail("at line " + std::to_string(last.line) + ", lane " + std::to_string(lane) +
           " is in another warp exchange, at line " + std::to_string(thread.line));
    values[lane] = thread.value;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (last.mask >> lane & 1) results[lane] = received(*lane_of(last, lane), values);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    Thread& thread = *lane_of(last, lane);
    thread.value = results[lane];
    thread.state = State::ready;
  }
}

}  // namespace

bool wanted() {
  static const bool answer = [] {
    const char* setting = std::getenv("MOLKERN_EMULATE_CUDA");
    return !setting || std::strcmp(setting, "0") != 0;
  }();
  return answer;
}

std::vector<std::string> launched() {
  Launch& now = launch();
  const std::lock_guard<std::mutex> lock(now.running);
  return {now.names.begin(), now.names.end()};
}

void run(const char* kernel_name, dim3 grid, dim3 block, size_t shared_bytes,
         void (*thread)(const void*), const void* closure) {
  Launch& now = launch();
  const std::lock_guard<std::mutex> lock(now.running);
  now.names.insert(kernel_name);
  now.kernel = kernel_name;
  now.body = thread;
  now.closure = closure;
  blockIdx = threadIdx = {0, 0, 0};
  check_launch(grid, block, shared_bytes);
  blockDim = block;
  gridDim = grid;
  prepare(block, shared_bytes);
  try {
    run_grid(grid, block);
  } catch (...) {
    // Threads that wait will never be resumed; their stacks go with them.
    now.idle.clear();
    now.workers.clear();
    std::free(now.dynamic);
    throw;
  }
  std::free(now.dynamic);
}

void allow_dynamic_shared(size_t bytes) {
  const std::lock_guard<std::mutex> lock(launch().running);
  launch().dynamic_limit = std::max(launch().dynamic_limit, bytes);
}

void* dynamic_shared() {
  if (!launch().dynamic) fail("it asks for dynamic shared memory, but the launch gave none");
  return launch().dynamic;
}

SharedSlot::SharedSlot(size_t bytes) : bytes(bytes), memory(allocate(bytes)) {}
SharedSlot::~SharedSlot() { std::free(memory); }

void* SharedSlot::get() {
  Launch& now = launch();
  if (block == now.block_serial) return memory;
  block = now.block_serial;
  now.static_bytes += bytes;
  if (now.static_bytes > shared_limit)
    fail(std::to_string(now.static_bytes) + " bytes of static shared memory are too many");
  fill_with_poison(memory, bytes);
  return memory;
}

void maybe_yield() {
  if (launch().random_state && random_below(4) == 0) give_way();
}

int barrier_count(int predicate, int line) {
  Launch& now = launch();
  Thread& self = *now.current;
  self.line = line;
  if (now.waiting && now.barrier_line != line)
    fail("it is at the barrier at line " + std::to_string(line) +
         " while another thread is at the one at line " + std::to_string(now.barrier_line));
  now.barrier_line = line;
  now.barrier_sum += predicate != 0;
  self.state = State::at_barrier;
  if (++now.waiting == static_cast<int>(now.threads.size())) {
    for (Thread& thread : now.threads) {
      thread.state = State::ready;
      thread.predicate = now.barrier_sum;
    }
    now.waiting = now.barrier_sum = 0;
  }
  give_way();
  return self.predicate;
}

void barrier(int line) { barrier_count(0, line); }

uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, int line) {
  Thread& self = *launch().current;
  self.kind = kind;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.line = line;
  check_exchange(self);
  self.state = State::exchanging;
  warp_of(self).exchanging |= bit_of(self);
  if (all_here(self)) complete(self);
  // In natural order the last lane goes straight on; shuffled, every lane has its turn.
  if (self.state != State::ready || launch().random_state) give_way();
  return self.value;
}

int lane() { return launch().current->number % 32; }

}  // namespace cuda_emulation
