// What the stand-ins share: the device's memory is the host's, and its work waits in queues.
#pragma once

#include <cstddef>
#include <functional>

using Work = std::function<void()>;

// Done when somebody waits for it, or for work that comes after it. Counted, as a call to the caller's file.
void enqueue(void *stream, Work work, const char *what = __builtin_FILE());
bool on_device(const void *pointer);    // allocated by cudaMalloc, and not yet freed
int current_device();
extern bool cudnn_9;  // whether this library was loaded by that one's name
float as_tf32(float value);  // rounded to TF32, in which this card multiplies float32 wherever it may
[[noreturn]] void give_up(const char *format, ...);  // on what CUDA would call undefined, or refuse
