// The driver's inside as cuBLAS and NVRTC see it.
#pragma once
#include <functional>
#include <mutex>
#include <string>

#include "emulator.h"

namespace emulator {

/// One thread at a time is in the driver or runs kernels.
std::recursive_mutex &driver_mutex();

/// Work on a stream: an empty string, or what went wrong. It may run more than once (graphs).
using Operation = std::function<std::string()>;

/// Puts work at the end of a stream. False if the stream is none.
bool enqueue(void *stream, Operation operation);

/// Says why the call that is about to return an error fails.
void set_last_error(const std::string &message);

/// A variable's number.
uint64_t environment(const char *name, uint64_t otherwise);
/// Bytes of device memory, and of shared memory of a block (device.cpp).
size_t memory_limit();
size_t shared_limit();

/// Device memory (memory.cpp), every byte 0xff: NaN. Null if there are no addresses left.
void *allocate(size_t bytes);
/// Frees it: an empty string, or what is wrong.
std::string release(void *memory);
size_t allocated_bytes();
/// Whether the bytes lie inside one live allocation.
bool is_device_range(const void *address, size_t bytes);

/// The folder of this library.
std::string library_folder();
/// The first line of a file beside this library.
std::string beside(const char *name);

} // namespace emulator
