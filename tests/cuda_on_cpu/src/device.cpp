// libcuda, and CUDA's runtime in the place of the one inside CuPy: memory, streams, events, kernels.
#include "device.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500,
       NOT_READY = 600 };

static std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

void give_up(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("CUDA on the CPU: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  abort();
}

// What CuPy and the libraries ask for, counted for whoever measures the host.

static auto &counts = *new std::map<std::string, long>;

static void count(const std::string &what) {
  Lock lock(mutex);
  counts[what]++;
}

// Streams. A task runs after those that CUDA guarantees to come before it, and after no others.

struct Task {
  Work work;
  std::vector<std::shared_ptr<Task>> after;
  bool done = false;
  double milliseconds = 0;
};
using TaskRef = std::shared_ptr<Task>;
struct Stream { bool blocking; TaskRef last; };
struct Event { bool timing; TaskRef task; };

// Never destroyed: what is still queued when the process ends is not done.
static auto &legacy = *new Stream{false, nullptr};
static auto &streams = *new std::set<Stream *>{&legacy};

static Stream *stream_of(void *handle) { return (uintptr_t)handle <= 2 ? &legacy : (Stream *)handle; }

static void finish(const TaskRef &last) {
  Lock lock(mutex);
  std::vector<TaskRef> stack;
  if (last) stack.push_back(last);
  while (!stack.empty()) {
    TaskRef task = stack.back();
    size_t before = stack.size();
    for (auto &other : task->after) if (other && !other->done) stack.push_back(other);
    if (stack.size() > before) continue;
    stack.pop_back();
    if (task->done) continue;
    if (task->work) task->work();
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    task->milliseconds = 1e3 * now.tv_sec + 1e-6 * now.tv_nsec;
    task->done = true;
    task->work = nullptr;
    task->after.clear();
  }
}

static void finish_all() {
  Lock lock(mutex);
  for (auto *stream : streams) finish(stream->last);
}

static TaskRef add_task(void *handle, Work work, TaskRef awaited = nullptr) {
  Lock lock(mutex);
  Stream *stream = stream_of(handle);
  auto task = std::make_shared<Task>();
  task->work = std::move(work);
  task->after = {stream->last, awaited};
  // The legacy default stream and blocking streams wait for each other.
  if (stream == &legacy) {
    for (auto *other : streams) if (other->blocking) task->after.push_back(other->last);
  } else if (stream->blocking) {
    task->after.push_back(legacy.last);
  }
  return stream->last = task;
}

void enqueue(void *stream, Work work, const char *what) {
  static bool idle = getenv("CUDA_ON_CPU_IDLE");  // nothing is computed, so that the host's time is what remains
  count(basename(what));
  add_task(stream, idle ? nullptr : std::move(work));
}

// Memory.

struct Block { size_t size; bool pinned; };
static auto &blocks = *new std::map<const char *, Block>;

static const Block *block_of(const void *pointer) {
  Lock lock(mutex);
  auto next = blocks.upper_bound((const char *)pointer);
  if (next == blocks.begin()) return nullptr;
  auto &[start, block] = *std::prev(next);
  return (const char *)pointer < start + block.size ? &block : nullptr;
}

bool on_device(const void *pointer) { auto *block = block_of(pointer); return block && !block->pinned; }

static int allocate(void **pointer, size_t size, bool pinned) {
  Lock lock(mutex);
  if (posix_memalign(pointer, 512, size ? size : 1)) return OUT_OF_MEMORY;
  memset(*pointer, 0xff, size);  // NaN in every floating-point type: what is read before it is written shows
  blocks[(const char *)*pointer] = {size, pinned};
  return OK;
}

static int release(void *pointer) {
  finish_all();
  Lock lock(mutex);
  if (pointer && !blocks.erase((const char *)pointer)) give_up("%p is freed, but was not allocated", pointer);
  free(pointer);
  return OK;
}

static void check_copy(const void *to, const void *from, int kind) {
  enum { TO_DEVICE = 1, TO_HOST = 2, WITHIN_DEVICE = 3, BY_POINTERS = 4 };
  if (kind != BY_POINTERS && (on_device(to) != (kind == TO_DEVICE || kind == WITHIN_DEVICE) ||
                              on_device(from) != (kind == TO_HOST || kind == WITHIN_DEVICE)))
    give_up("copy of kind %d from %p to %p: they are elsewhere", kind, from, to);
}

// TF32 keeps 10 of float32's 23 bits of fraction.

float as_tf32(float value) {
  static const char *override = getenv("NVIDIA_TF32_OVERRIDE");
  static bool forbidden = override && !strcmp(override, "0");
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (forbidden || (bits & 0x7f800000) == 0x7f800000) return value;
  bits = (bits + 0x1000) & ~0x1fffu;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Devices.

static int version;  // of the runtime that this one replaces
bool cudnn_9;
static int device;

int current_device() { return device; }

static std::vector<int> visible_devices() {
  const char *listed = getenv("CUDA_VISIBLE_DEVICES");
  if (!listed) return {0, 1, 2, 3};
  std::vector<int> devices;
  for (const char *at = listed; *at; at += strspn(at, ",")) {
    devices.push_back(atoi(at));
    at += strcspn(at, ",");
  }
  return devices;
}

static int capability() {
  const char *given = getenv("CUDA_ON_CPU_CAPABILITY");
  return given ? atoi(given) : 90;
}

static int attribute(int number) {
  switch (number) {
    case 1: return 1024;     // threads per block
    case 8: return 48 << 10;  // shared memory per block
    case 10: return 32;      // warp
    case 16: return 132;     // multiprocessors
    case 75: return capability() / 10;
    case 76: return capability() % 10;
    default: return 0;
  }
}

extern "C" {

int cudaDriverGetVersion(int *number) { *number = version; return OK; }
int cudaGetDeviceCount(int *count) { *count = visible_devices().size(); return *count ? OK : NO_DEVICE; }
int cudaGetDevice(int *index) { *index = device; return OK; }
int cudaSetDevice(int index) {
  if (index < 0 || index >= (int)visible_devices().size()) return INVALID_DEVICE;
  device = index;
  return OK;
}
int cudaDeviceGetAttribute(int *value, int number, int) { *value = attribute(number); return OK; }
int cudaDeviceGetPCIBusId(char *text, int size, int index) {
  snprintf(text, size, "0000:%02x:00.0", 16 + visible_devices()[index]);
  return OK;
}
int cudaGetDeviceProperties_v2(void *out, int index) {
  struct {  // the beginning of cudaDeviceProp in CUDA 12 and 13
    char name[256], uuid[16], luid[8];
    unsigned mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3], clock;
    size_t constants;
    int major, minor;
  } properties{};
  strcpy(properties.name, "CPU in the place of a GPU");
  properties.uuid[15] = visible_devices()[index] + 1;
  properties.memory = (size_t)8 << 30;
  properties.shared_memory = attribute(8);
  properties.warp = attribute(10);
  properties.threads = attribute(1);
  properties.major = attribute(75);
  properties.minor = attribute(76);
  memset(out, 0, 1000);
  memcpy(out, &properties, sizeof properties);
  return OK;
}
int cudaGetDeviceProperties(void *out, int index) { return cudaGetDeviceProperties_v2(out, index); }
int cudaDeviceSynchronize() { count("wait"); finish_all(); return OK; }
int cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; return OK; }
int cudaGetLastError() { return OK; }

int cudaMalloc(void **pointer, size_t size) { count("allocation"); return allocate(pointer, size, false); }
int cudaHostAlloc(void **pointer, size_t size, unsigned) {
  count("allocation");
  return allocate(pointer, size, true);
}
int cudaFree(void *pointer) { return release(pointer); }
int cudaFreeHost(void *pointer) { return release(pointer); }
int cudaMemGetInfo(size_t *free, size_t *total) {
  *free = (size_t)6 << 30;
  *total = (size_t)8 << 30;
  return OK;
}
int cudaPointerGetAttributes(void *out, const void *pointer) {
  struct { int type, device; const void *on_device, *on_host; } attributes{0, device, pointer, pointer};
  if (auto *block = block_of(pointer)) attributes.type = block->pinned ? 1 : 2;
  memcpy(out, &attributes, sizeof attributes);
  return OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  check_copy(to, from, kind);
  count(std::string("copy to ") + (on_device(to) ? "GPU" : "host") +
        (block_of(from) && block_of(to) ? "" : ", pageable"));
  if (!block_of(from)) {  // pageable memory is read before the call returns, and written too
    std::string staged((const char *)from, size);
    add_task(stream, [=] { memcpy(to, staged.data(), size); });
  } else {
    add_task(stream, [=] { memmove(to, from, size); });
  }
  if (!block_of(to)) finish(stream_of(stream)->last);
  return OK;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  count("wait");
  cudaMemcpyAsync(to, from, size, kind, nullptr);
  finish(legacy.last);
  return OK;
}
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
  count("memset");
  add_task(stream, [=] { memset(to, value, size); });
  return OK;
}
int cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, nullptr); }

int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
  Lock lock(mutex);
  enum { NON_BLOCKING = 1 };
  auto *made = new Stream{!(flags & NON_BLOCKING), nullptr};
  streams.insert(made);
  *stream = made;
  return OK;
}
int cudaStreamCreate(void **stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
int cudaStreamDestroy(void *stream) {
  Lock lock(mutex);
  auto &last = stream_of(stream)->last;
  if (last && !last->done) return OK;  // what it was asked for is still done, as late as ever
  streams.erase(stream_of(stream));
  delete stream_of(stream);
  return OK;
}
int cudaStreamSynchronize(void *stream) { count("wait"); finish(stream_of(stream)->last); return OK; }
int cudaStreamQuery(void *stream) {
  auto &last = stream_of(stream)->last;
  return last && !last->done ? NOT_READY : OK;
}
int cudaStreamWaitEvent(void *stream, Event *event, unsigned) {
  add_task(stream, nullptr, event->task);
  return OK;
}
int cudaStreamIsCapturing(void *, int *status) { *status = 0; return OK; }
int cudaEventCreateWithFlags(Event **event, unsigned flags) {
  enum { DISABLE_TIMING = 2 };
  *event = new Event{!(flags & DISABLE_TIMING), nullptr};
  return OK;
}
int cudaEventCreate(Event **event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(Event *event) { delete event; return OK; }
int cudaEventRecord(Event *event, void *stream) {
  count("event");
  event->task = add_task(stream, nullptr);
  return OK;
}
int cudaEventSynchronize(Event *event) { count("wait"); finish(event->task); return OK; }
int cudaEventQuery(Event *event) {  // a device goes on by itself: whoever asks is to see it some time
  finish(event->task);
  return OK;
}
int cudaEventElapsedTime(float *milliseconds, Event *start, Event *stop) {
  if (!start->timing || !stop->timing || !start->task || !stop->task) return INVALID_VALUE;
  if (!start->task->done || !stop->task->done) return NOT_READY;
  *milliseconds = stop->task->milliseconds - start->task->milliseconds;
  return OK;
}

// ``what number`` of each thing counted since the last call.
const char *cuda_on_cpu_counts() {
  static std::string text;
  Lock lock(mutex);
  text.clear();
  for (auto &[what, number] : counts) text += what + " " + std::to_string(number) + "\n";
  counts.clear();
  return text.c_str();
}

// The driver: a module is a shared object made by nvrtc.cpp.

static auto &kernels = *new std::map<void *, std::string>;

int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int *number) { *number = version; return OK; }
int cuGetErrorName(int, const char **text) { *text = "CUDA_ERROR_ON_CPU"; return OK; }
int cuGetErrorString(int, const char **text) { *text = "an error of the CPU in the GPU's place"; return OK; }
int cuCtxGetCurrent(void **context) { *context = &device; return OK; }
int cuCtxSetCurrent(void *) { return OK; }
int cuCtxGetDevice(int *index) { *index = device; return OK; }
int cuModuleLoadData(void **module, const char *image) {
  auto *header = (const Elf64_Ehdr *)image;
  if (memcmp(image, ELFMAG, SELFMAG)) give_up("a module that was not compiled here");
  size_t size = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  char path[] = "/tmp/cuda-on-cpu-XXXXXX";
  int file = mkstemp(path);
  if (file < 0 || write(file, image, size) != (ssize_t)size) give_up("%s: cannot be written", path);
  close(file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!*module) give_up("%s", dlerror());
  return OK;
}
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = dlsym(module, (std::string("launch_") + name).c_str());
  kernels[*function] = name;
  return *function ? OK : NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned, void *stream, void **values, void **) {
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || gy > 65535 || gz > 65535)
    return INVALID_VALUE;
  const unsigned shape[] = {gx, gy, gz, bx, by, bz};
  Work work;
  ((void (*)(void **, const unsigned *, Work *))function)(values, shape, &work);
  enqueue(stream, work, kernels[function].c_str());
  return OK;
}
int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return OK; }
int cuFuncSetAttribute(void *, int, int) { return OK; }

// CuPy's wheels hold NVIDIA's runtime within one of their modules. Each of its functions that this file has
// too is overwritten by a jump to the one here. What is not here fails there, for want of a GPU.

static void redirect(void *module, const char *path) {
  int file = open(path, O_RDONLY);
  struct stat status;
  if (file < 0 || fstat(file, &status)) give_up("%s: cannot be read", path);
  auto *image = (const char *)mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  auto *header = (const Elf64_Ehdr *)image;
  auto *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  auto base = ((link_map *)module)->l_addr;
  std::map<std::string, char *> runtime;
  for (int i = 0; i < header->e_shnum; i++) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    auto *names = image + sections[sections[i].sh_link].sh_offset;
    auto *symbols = (const Elf64_Sym *)(image + sections[i].sh_offset);
    for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++)
      if (ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC && !strncmp(names + symbols[k].st_name, "cuda", 4))
        runtime[names + symbols[k].st_name] = (char *)base + symbols[k].st_value;
  }
  if (!runtime.count("cudaRuntimeGetVersion")) give_up("%s: no CUDA runtime is in it", path);
  ((int (*)(int *))runtime["cudaRuntimeGetVersion"])(&version);
  size_t page = sysconf(_SC_PAGESIZE);
  for (auto &[name, code] : runtime) {
    void *here = dlsym(RTLD_DEFAULT, name.c_str());
    if (!here) continue;
    unsigned char jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0};  // movabs $here, %rax; jmp *%rax
    memcpy(jump + 2, &here, sizeof here);
    auto *start = (char *)((uintptr_t)code & ~(page - 1));
    if (mprotect(start, code + sizeof jump - start, PROT_READ | PROT_WRITE | PROT_EXEC))
      give_up("%s: cannot be written to in memory", path);
    memcpy(code, jump, sizeof jump);
  }
  munmap((void *)image, status.st_size);
}

// Preloaded, this one comes before the C library's. Functions of CUDA's that CuPy knows but never calls here
// need not be there: a module's are looked up when they are called.
void *dlopen(const char *path, int flags) {
  static auto loader = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
  bool of_cupy = path && strstr(path, "/cupy_backends/cuda/");
  void *module = loader(path, of_cupy ? (flags & ~RTLD_NOW) | RTLD_LAZY : flags);
  if (module && path && strstr(path, "libcudnn.so.9")) cudnn_9 = true;
  if (module && of_cupy && strstr(path, "/api/runtime.")) redirect(module, path);
  return module;
}

}  // extern "C"
