// Torch's allocator for the CPU, which takes from StepMemory where a thread has entered one.
#pragma once

namespace molkern {

// Puts it in place, once; without a StepMemory everything stays as it was.
void install_step_allocator();

}  // namespace molkern
