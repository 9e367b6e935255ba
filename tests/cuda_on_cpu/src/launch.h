// How a kernel's threads are run, one after another on one thread of the CPU.
#pragma once

#ifdef ONE_THREAD
static void __syncthreads() { abort(); }
template <class Call> static void run(const unsigned *, Call call) {
  gridDim = blockDim = {1, 1, 1};
  call();
}
#else
// A block's threads are fibers, which take turns at __syncthreads(). They live on for the next block.
enum { THREADS = 1024, STACK = 1 << 15 };
struct Fiber { jmp_buf place; bool started, done; char *stack; };
static Fiber fibers[THREADS];
static int running;
static jmp_buf scheduler;
static const std::function<void()> *body;

static void leave() { if (!_setjmp(fibers[running].place)) _longjmp(scheduler, 1); }
static void __syncthreads() {
  Position mine = threadIdx;
  leave();
  threadIdx = mine;
}
static void live() {
  for (;;) {
    (*body)();
    fibers[running].done = true;
    leave();
  }
}
static __attribute__((noinline)) void resume(int thread) {
  running = thread;
  if (_setjmp(scheduler)) return;
  auto &fiber = fibers[thread];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  fiber.stack = (char *)malloc(STACK);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = STACK;
  makecontext(&context, live, 0);
  setcontext(&context);
}
static void run_block() {
  int size = blockDim.x * blockDim.y * blockDim.z, left = size;
  for (int thread = 0; thread < size; thread++) fibers[thread].done = false;
  while (left) {
    for (int thread = 0; thread < size; thread++) {
      if (fibers[thread].done) continue;
      unsigned t = thread;
      threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
      resume(thread);
      left -= fibers[thread].done;
    }
  }
}
template <class Call> static void run(const unsigned *shape, Call call) {
  std::function<void()> function = call;
  body = &function;
  gridDim = {shape[0], shape[1], shape[2]};
  blockDim = {shape[3], shape[4], shape[5]};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
}
#endif

struct Shape { unsigned sizes[6]; };

// A launch takes copies of its arguments, and is run later.
template <class... P>
static std::function<void()> launch(void (*kernel)(P...), void **values, const unsigned *sizes) {
  std::tuple<P...> arguments{*(P *)*values++...};
  Shape shape = reinterpreted<Shape>(*(const Shape *)sizes);
  return [=] { run(shape.sizes, [&] { std::apply(kernel, arguments); }); };
}
#define LAUNCHABLE(name)                                                                      \
  extern "C" void launch_##name(void **values, const unsigned *sizes, std::function<void()> *work) { \
    *work = launch(name, values, sizes);                                                      \
  }
