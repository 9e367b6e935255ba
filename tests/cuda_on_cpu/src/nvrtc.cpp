// libnvrtc: CUDA C++ through g++ into a shared object, which passes for a cubin.
#include "device.h"

#include <dlfcn.h>
#include <unistd.h>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>

enum { OK = 0, COMPILATION = 6 };
struct Program { std::string source, log, code; };

static std::string folder_of_this() {
  Dl_info info;
  dladdr((void *)folder_of_this, &info);
  std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/'));
}

static std::string contents(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

static int copy(const std::string &text, char *out) { memcpy(out, text.c_str(), text.size() + 1); return OK; }

extern "C" {

const char *nvrtcGetErrorString(int error) { return error == COMPILATION ? "g++ found errors" : "an error"; }
int nvrtcVersion(int *major, int *minor) {
  int version;
  ((int (*)(int *))dlsym(RTLD_DEFAULT, "cuDriverGetVersion"))(&version);
  *major = version / 1000;
  *minor = version % 1000 / 10;
  return OK;
}
int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return OK; }
int nvrtcGetSupportedArchs(int *architectures) { *architectures = 90; return OK; }
int nvrtcCreateProgram(Program **program, const char *source, const char *, int headers, const char **,
                       const char **) {
  if (headers) give_up("NVRTC with headers in memory");
  *program = new Program{source, "", ""};
  return OK;
}
int nvrtcDestroyProgram(Program **program) { delete *program; return OK; }
int nvrtcCompileProgram(Program *program, int count, const char **options) {
  if (program->source.empty()) {  // CuPy asks in order to name its cache
    program->code = "nothing";
    return OK;
  }
  char folder[] = "/tmp/cuda-on-cpu-XXXXXX";
  if (!mkdtemp(folder)) give_up("%s: cannot be made", folder);
  std::string here = folder_of_this(), source = std::string(folder) + "/kernel.cc", out = source + ".so";
  // CuPy's own headers and definitions, but none of NVIDIA's.
  std::string flags;
  for (int i = 0; i < count; i++) {
    std::string option = options[i];
    bool of_nvidia = option.find("nvidia") != option.npos || option.find("/_cuda/") != option.npos;
    if ((!option.rfind("-I", 0) && !of_nvidia) || !option.rfind("-D", 0)) flags += " '" + option + "'";
  }
  std::ofstream file(source);
  // Its loops stride over the grid: one thread does all. Where threads work together, each is run.
  if (program->source.find("CUPY_FOR") != std::string::npos) file << "#define ONE_THREAD\n";
  file << "#include \"launch.h\"\n" << program->source << "\n";
  std::regex kernel("__global__\\s+void\\s+(\\w+)\\s*\\(");
  for (std::sregex_iterator at(program->source.begin(), program->source.end(), kernel), end; at != end; ++at)
    file << "LAUNCHABLE(" << (*at)[1] << ")\n";
  file.close();
  auto command = std::string("LD_PRELOAD= " KERNEL_COMPILER " -shared -I'") + here + "' -include kernel.h";
  int status = system((command + flags + " " + source + " -o " + out + " 2> " + source + ".log").c_str());
  program->log = contents(source + ".log");
  program->code = contents(out);
  for (auto &path : {source, out, source + ".log", std::string(folder)}) remove(path.c_str());
  return status ? COMPILATION : OK;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) { *size = program->code.size() + 1; return OK; }
int nvrtcGetCUBIN(Program *program, char *out) { return copy(program->code, out); }
int nvrtcGetPTXSize(Program *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(Program *program, char *out) { return copy(program->code, out); }
int nvrtcGetProgramLogSize(Program *program, size_t *size) { *size = program->log.size() + 1; return OK; }
int nvrtcGetProgramLog(Program *program, char *out) { return copy(program->log, out); }

}  // extern "C"
