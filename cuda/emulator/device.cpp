// libcuda: what the device says of itself. It poses as an H100 or, by `PATCHGPT_EMULATOR_CAPABILITY=8.0`, as an A100.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"
#include "results.h"

namespace emulator {

namespace {

/// Stands for the one context and the one memory pool.
int token;

/// As a number such as 90.
int capability() {
    const char *text = getenv("PATCHGPT_EMULATOR_CAPABILITY");
    return text && strcmp(text, "8.0") == 0 ? 80 : 90;
}

} // namespace

uint64_t environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

size_t memory_limit() { return environment("PATCHGPT_EMULATOR_MEMORY", 16ull << 30); }
size_t shared_limit() { return (capability() == 80 ? 163 : 227) << 10; }

} // namespace emulator

using namespace emulator;

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal ? INVALID_DEVICE : SUCCESS; }
int cuDeviceGetName(char *name, int room, int) { return snprintf(name, (size_t)room, "patchgpt emulator"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory_limit(), SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 4; break;                   // multiprocessors
    case 75: *value = capability() / 10; break;   // compute capability, major
    case 76: *value = capability() % 10; break;   // and minor
    case 97: *value = (int)shared_limit(); break; // shared memory of a block, by consent
    default: set_last_error("the emulator knows no device attribute " + std::to_string(attribute)); return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &token, SUCCESS; }
int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &token, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }

int cuGetErrorName(int result, const char **text) {
    switch (result) {
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case LAUNCH_FAILED: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; break;
    default: *text = "CUDA error";
    }
    return SUCCESS;
}
int cuGetErrorString(int, const char **text) { return *text = "see the emulator's message", SUCCESS; }
}
