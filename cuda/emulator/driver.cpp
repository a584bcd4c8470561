// libcuda: the driver's functions that the backend calls, over the emulator. Behaviour and error codes are those of the CUDA driver API's
// documentation; what it calls undefined is an error here where it can be noticed.
//
// A stream is a queue. Work runs when somebody waits for it or at random moments before, so that a host that reads or
// overwrites memory too early sees it. Unlike the real driver's, an error is told once and then forgotten.
#include "driver.h"
#include "results.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <thread>

namespace emulator {

namespace {

struct Graph {
    std::vector<Operation> operations;
    bool spoiled = false; // something was asked for that cannot be recorded
};

struct Stream {
    std::deque<std::pair<uint64_t, Operation>> queue;
    uint64_t asked = 0, done = 0;
    std::string error;
    std::unique_ptr<Graph> capture;
    std::thread::id capturing; // the thread that captures
};

struct Event {
    Stream *stream = nullptr;
    uint64_t at = 0;
    std::shared_ptr<double> seconds; // when the stream came to it
};

struct Module {
    void *library;
    std::map<std::string, const EmulatedEntry *> entries;
};

struct Function {
    const EmulatedEntry *entry;
    size_t dynamic_limit = 48 << 10;
};

std::set<Stream *> streams;
std::map<char *, size_t> pinned;
std::map<const EmulatedEntry *, std::unique_ptr<Function>> functions;
Module *loading = nullptr;
uint64_t launch_count = 0;

thread_local std::string last_error;

Random &dice() {
    static Random random(environment("PATCHGPT_EMULATOR_SEED", 1));
    return random;
}

Result failed(Result result, const std::string &message) {
    last_error = message;
    return result;
}

void execute(Stream &stream) {
    auto [number, operation] = std::move(stream.queue.front());
    stream.queue.pop_front();
    std::string error = operation();
    if (!error.empty() && stream.error.empty()) stream.error = error;
    stream.done = number;
}

void drain(Stream &stream) {
    while (!stream.queue.empty()) execute(stream);
}

/// Tells an error of earlier work once.
Result report(Stream &stream) {
    if (stream.error.empty()) return SUCCESS;
    last_error = stream.error;
    stream.error.clear();
    return LAUNCH_FAILED;
}

/// What cannot be recorded ends the recording of its stream, as the real driver has it: with an error now and another at its end.
Result unsupported(Stream *stream, const std::string &what) {
    stream->capture->spoiled = true;
    return failed(CAPTURE_UNSUPPORTED, what + " on a stream that is being captured");
}

/// The same for what names no stream: calls that may wait for the device, which no thread that captures may make.
Result prohibited(const std::string &what) {
    for (Stream *stream : streams)
        if (stream->capture && stream->capturing == std::this_thread::get_id()) return unsupported(stream, what);
    return SUCCESS;
}

Result push(Stream *stream, Operation operation) {
    if (!streams.count(stream)) return failed(INVALID_HANDLE, "no such stream");
    if (Result result = report(*stream)) return result;
    if (stream->capture) {
        if (stream->capture->spoiled) return failed(CAPTURE_INVALIDATED, "the capture has failed before");
        stream->capture->operations.push_back(std::move(operation));
        return SUCCESS;
    }
    stream->queue.push_back({++stream->asked, std::move(operation)});
    // Now, a little later, or only when somebody waits.
    uint64_t choice = dice().next() & 3;
    if (choice == 0 || stream->queue.size() > 256) drain(*stream);
    else if (choice == 1) execute(*stream);
    return SUCCESS;
}

bool is_pinned(const void *address, size_t bytes) {
    auto after = pinned.upper_bound((char *)address);
    if (after == pinned.begin()) return false;
    auto [begin, length] = *std::prev(after);
    return (char *)address + bytes <= begin + length;
}

std::string copy(void *to, const void *from, size_t bytes, bool to_device, bool from_device) {
    if (to_device && !is_device_range(to, bytes)) return "a copy of " + std::to_string(bytes) + " bytes to " + describe(to);
    if (from_device && !is_device_range(from, bytes)) return "a copy of " + std::to_string(bytes) + " bytes from " + describe(from);
    memmove(to, from, bytes);
    if (to_device) mark_initialised(to, bytes);
    return "";
}

} // namespace

std::recursive_mutex &driver_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

bool enqueue(void *stream, Operation operation) { return push((Stream *)stream, std::move(operation)) == SUCCESS; }
void set_last_error(const std::string &message) { last_error = message; }

std::string library_folder() {
    Dl_info info;
    if (!dladdr((void *)&library_folder, &info)) return ".";
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

std::string beside(const char *name) {
    std::ifstream file(library_folder() + "/" + name);
    std::string line;
    std::getline(file, line);
    return line;
}

} // namespace emulator

using namespace emulator;

#define LOCK std::lock_guard<std::recursive_mutex> lock(driver_mutex())

void emulated_register(const EmulatedEntry *entry) {
    if (loading) loading->entries[entry->name] = entry;
}

extern "C" {

size_t emulator_last_error(char *text, size_t room) {
    size_t bytes = last_error.size() < room ? last_error.size() : room;
    memcpy(text, last_error.data(), bytes);
    last_error.clear();
    return bytes;
}

// ---- memory

int cuMemAllocAsync(void **address, size_t bytes, void *stream) {
    LOCK;
    if (!streams.count((Stream *)stream)) return failed(INVALID_HANDLE, "no such stream");
    if (!bytes) return failed(INVALID_VALUE, "0 bytes are allocated");
    // The real driver would make a node that allocates; the backend means to have none.
    if (((Stream *)stream)->capture) return unsupported((Stream *)stream, "memory is allocated");
    if (allocated_bytes() + bytes > memory_limit()) return failed(OUT_OF_MEMORY, "the emulated device has no more memory");
    *address = allocate(bytes);
    return *address ? SUCCESS : failed(OUT_OF_MEMORY, "the emulated device has no more addresses");
}

int cuMemFreeAsync(void *address, void *stream) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s)) return failed(INVALID_HANDLE, "no such stream");
    if (s->capture) return unsupported(s, "memory is freed");
    s->queue.push_back({++s->asked, [address] { return release((char *)address); }});
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *available, size_t *total) {
    LOCK;
    *total = memory_limit();
    *available = *total - allocated_bytes();
    return SUCCESS;
}

int cuMemAllocHost_v2(void **address, size_t bytes) {
    LOCK;
    if (Result result = prohibited("host memory is pinned")) return result;
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*address) return failed(OUT_OF_MEMORY, "the host has no more memory");
    pinned[(char *)*address] = bytes;
    return SUCCESS;
}

int cuMemFreeHost(void *address) {
    LOCK;
    if (Result result = prohibited("pinned memory is freed")) return result;
    for (Stream *stream : streams) drain(*stream);
    if (!pinned.erase((char *)address)) return failed(INVALID_VALUE, "host memory is freed that is not pinned");
    free(address);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    LOCK;
    if (is_pinned(from, bytes)) return push((Stream *)stream, [=] { return copy(to, from, bytes, true, false); });
    // The real driver would read the memory at each replay, whatever is there then.
    if (streams.count((Stream *)stream) && ((Stream *)stream)->capture) return unsupported((Stream *)stream, "pageable memory is read");
    // Pageable memory has been read when the call returns.
    std::vector<char> staged((const char *)from, (const char *)from + bytes);
    return push((Stream *)stream, [=] { return copy(to, staged.data(), bytes, true, false); });
}

int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    LOCK;
    bool later = is_pinned(to, bytes);
    if (!later && streams.count((Stream *)stream) && ((Stream *)stream)->capture) return unsupported((Stream *)stream, "pageable memory is written");
    int result = push((Stream *)stream, [=] { return copy(to, from, bytes, false, true); });
    // Pageable memory has been written when the call returns.
    if (result == SUCCESS && !later) drain(*(Stream *)stream);
    return result;
}

int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    LOCK;
    return push((Stream *)stream, [=] { return copy(to, from, bytes, true, true); });
}

int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *stream) {
    LOCK;
    return push((Stream *)stream, [=]() -> std::string {
        if (!is_device_range(to, bytes)) return "memory of " + std::to_string(bytes) + " bytes is set at " + describe(to);
        memset(to, value, bytes);
        mark_initialised(to, bytes);
        return "";
    });
}

// ---- streams, events, graphs

int cuStreamCreate(void **stream, unsigned) {
    LOCK;
    auto *made = new Stream;
    streams.insert(made);
    return *stream = made, SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s)) return failed(INVALID_HANDLE, "no such stream");
    drain(*s);
    streams.erase(s);
    delete s;
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s)) return failed(INVALID_HANDLE, "no such stream");
    if (s->capture) return unsupported(s, "the end of work is waited for");
    drain(*s);
    return report(*s);
}

int cuStreamBeginCapture_v2(void *stream, int) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s) || s->capture) return failed(INVALID_HANDLE, "no such stream, or one that is being captured");
    s->capture = std::make_unique<Graph>();
    s->capturing = std::this_thread::get_id();
    return SUCCESS;
}

int cuStreamEndCapture(void *stream, void **graph) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s) || !s->capture) return failed(INVALID_HANDLE, "no stream that is being captured");
    std::unique_ptr<Graph> captured = std::move(s->capture);
    if (captured->spoiled) return *graph = nullptr, failed(CAPTURE_INVALIDATED, "something was asked of the stream that cannot be captured");
    return *graph = captured.release(), SUCCESS;
}

int cuGraphGetNodes(void *graph, void **nodes, size_t *count) {
    LOCK;
    if (nodes) return failed(INVALID_VALUE, "the emulator tells how many nodes there are and gives none");
    return *count = ((Graph *)graph)->operations.size(), SUCCESS;
}

int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    LOCK;
    return *executable = new Graph(*(Graph *)graph), SUCCESS;
}

int cuGraphLaunch(void *executable, void *stream) {
    LOCK;
    if (streams.count((Stream *)stream) && ((Stream *)stream)->capture) return unsupported((Stream *)stream, "a graph is launched");
    for (Operation &operation : ((Graph *)executable)->operations)
        if (Result result = push((Stream *)stream, operation)) return result;
    return SUCCESS;
}

int cuGraphDestroy(void *graph) {
    LOCK;
    delete (Graph *)graph;
    return SUCCESS;
}
int cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }

int cuEventCreate(void **event, unsigned) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(void *event) { return delete (Event *)event, SUCCESS; }

int cuEventRecord(void *event, void *stream) {
    LOCK;
    auto *s = (Stream *)stream;
    if (!streams.count(s)) return failed(INVALID_HANDLE, "no such stream");
    if (s->capture) return unsupported(s, "an event is recorded");
    auto seconds = std::make_shared<double>(0);
    s->queue.push_back({++s->asked, [seconds]() -> std::string {
        *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
        return "";
    }});
    *(Event *)event = {s, s->asked, seconds};
    return SUCCESS;
}

int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    LOCK;
    auto *begun = (Event *)from, *ended = (Event *)to;
    for (Event *e : {begun, ended}) {
        if (!e->stream || !streams.count(e->stream)) return failed(INVALID_HANDLE, "an event that was not recorded");
        if (e->stream->done < e->at) return failed(NOT_READY, "an event that the stream has not come to");
    }
    return *milliseconds = (float)((*ended->seconds - *begun->seconds) * 1e3), SUCCESS;
}

int cuEventQuery(void *event) {
    LOCK;
    if (Result result = prohibited("an event is asked for")) return result;
    auto *e = (Event *)event;
    if (!e->stream || !streams.count(e->stream) || e->stream->done >= e->at) return SUCCESS;
    if (dice().coin() && !e->stream->queue.empty()) execute(*e->stream);
    return e->stream->done >= e->at ? SUCCESS : NOT_READY;
}

int cuEventSynchronize(void *event) {
    LOCK;
    if (Result result = prohibited("an event is waited for")) return result;
    auto *e = (Event *)event;
    if (e->stream && streams.count(e->stream))
        while (e->stream->done < e->at && !e->stream->queue.empty()) execute(*e->stream);
    return SUCCESS;
}

// ---- modules and launches

int cuModuleLoadData(void **module, const void *image) {
    LOCK;
    if (Result result = prohibited("a kernel is loaded")) return result;
    // An ELF file ends with its table of section headers.
    auto *bytes = (const unsigned char *)image;
    if (memcmp(bytes, "\177ELF", 4) != 0) return failed(INVALID_IMAGE, "the machine code was not made by the emulator's compiler");
    uint64_t table;
    uint16_t entry_bytes, entries;
    memcpy(&table, bytes + 40, 8), memcpy(&entry_bytes, bytes + 58, 2), memcpy(&entries, bytes + 60, 2);
    size_t length = table + (size_t)entry_bytes * entries;
    const char *folder = getenv("TMPDIR");
    std::string path = std::string(folder && *folder ? folder : "/tmp") + "/patchgpt-kernel-XXXXXX";
    int file = mkstemp(&path[0]);
    if (file < 0) return failed(INVALID_IMAGE, "no temporary file can be made at " + path);
    size_t written = 0;
    while (written < length) {
        ssize_t n = write(file, bytes + written, length - written);
        if (n <= 0) break;
        written += (size_t)n;
    }
    close(file);
    auto made = std::make_unique<Module>();
    loading = made.get();
    made->library = written == length ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    loading = nullptr;
    if (!made->library) {
        const char *why = dlerror();
        unlink(path.c_str());
        return failed(INVALID_IMAGE, std::string("the compiled kernel does not load: ") + (why ? why : "the disk is full"));
    }
    // A checker looks up source lines in it, at the end too; nobody else needs its name any more.
    static struct Files {
        std::vector<std::string> paths;
        ~Files() {
            for (auto &p : paths) unlink(p.c_str());
        }
    } files;
    if (getenv("PATCHGPT_EMULATOR_CHECK"))
        files.paths.push_back(path);
    else
        unlink(path.c_str());
    return *module = made.release(), SUCCESS;
}

int cuModuleUnload(void *module) {
    LOCK;
    // The code stays: operations of graphs may still name it.
    delete (Module *)module;
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    LOCK;
    auto *m = (Module *)module;
    auto found = m->entries.find(name);
    if (found == m->entries.end()) return failed(NOT_FOUND, std::string("no entry point ") + name);
    auto &f = functions[found->second];
    if (!f) f.reset(new Function{found->second});
    return *function = f.get(), SUCCESS;
}

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    // Static shared memory is known only when the kernel runs.
    *value = attribute == 0 ? (int)((Function *)function)->entry->threads : 0;
    return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    LOCK;
    if (attribute != 8) return failed(INVALID_VALUE, "the emulator sets the limit of dynamic shared memory only");
    if ((size_t)value > shared_limit()) return failed(INVALID_VALUE, "more shared memory than a block can have");
    ((Function *)function)->dynamic_limit = (size_t)value;
    return SUCCESS;
}

int cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *bytes) {
    const EmulatedEntry *entry = ((Function *)function)->entry;
    if (index >= entry->parameters) return INVALID_VALUE;
    *offset = 0;
    for (size_t i = 0; i < index; i++) *offset += (entry->sizes[i] + 7) / 8 * 8;
    return *bytes = entry->sizes[index], SUCCESS;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **) {
    LOCK;
    auto *f = (Function *)function;
    const EmulatedEntry *entry = f->entry;
    std::string name = std::string("kernel ") + entry->name + ": ";
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || by != 1 || bz != 1)
        return failed(INVALID_VALUE, name + "a grid or block that is not possible");
    if (!bx || bx > entry->threads) return failed(LAUNCH_OUT_OF_RESOURCES, name + std::to_string(bx) + " threads where KERNEL says at most " + std::to_string(entry->threads));
    if (shared > f->dynamic_limit) return failed(INVALID_VALUE, name + "more dynamic shared memory than the function has consent for");
    // The driver copies the arguments before it returns.
    struct Held {
        std::vector<std::vector<uint64_t>> values;
    };
    auto held = std::make_shared<Held>();
    Launch launch{entry, {gx, gy, gz}, {bx, 1, 1}, shared, {}, 0};
    for (unsigned i = 0; i < entry->parameters; i++) {
        // Parameters may hold vectors and tensor maps, which are aligned to their sizes.
        held->values.emplace_back((entry->sizes[i] + 7) / 8 + 16);
        auto *place = (uint64_t *)(((uintptr_t)held->values.back().data() + 127) / 128 * 128);
        memcpy(place, arguments[i], entry->sizes[i]);
        launch.arguments.push_back(place);
    }
    launch.arguments.push_back(entry->kernel);
    uint64_t base = environment("PATCHGPT_EMULATOR_SEED", 1);
    return push((Stream *)stream, [=]() mutable {
        (void)held;
        launch.seed = base * 0x9E3779B97F4A7C15ull + launch_count++;
        std::string error = run(launch);
        return error.empty() ? error : name + error;
    });
}

} // extern "C"
