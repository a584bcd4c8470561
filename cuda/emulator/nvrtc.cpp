// libnvrtc: compiles kernels with the host's C++ compiler into a shared library, which takes the place of a cubin.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "driver.h"

extern char **environ;

namespace {

enum Result { SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6, INTERNAL = 11 };

struct Program {
    std::string text, name;
    std::vector<std::pair<std::string, std::string>> headers;
    std::string log, image;
};

/// Runs a command with its output in a file; its exit status.
int run(const std::vector<std::string> &command, const std::string &log) {
    std::vector<char *> arguments;
    for (auto &argument : command) arguments.push_back(const_cast<char *>(argument.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    // A sanitizer's library that is preloaded here is not for the compiler.
    std::vector<char *> environment;
    for (char **variable = environ; *variable; variable++)
        if (strncmp(*variable, "LD_PRELOAD=", 11) != 0) environment.push_back(*variable);
    environment.push_back(nullptr);
    pid_t child;
    int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    if (failed) return 127;
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 127;
}

std::string contents(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

} // namespace

extern "C" {

const char *nvrtcGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    default: return "NVRTC_ERROR";
    }
}
int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, SUCCESS; }
int nvrtcGetNumSupportedArchs(int *count) { return *count = 2, SUCCESS; }
int nvrtcGetSupportedArchs(int *architectures) { return architectures[0] = 80, architectures[1] = 90, SUCCESS; }

int nvrtcCreateProgram(void **program, const char *text, const char *name, int headers, const char *const *texts, const char *const *names) {
    auto *made = new Program{text, name ? name : "kernel.cu", {}, "", ""};
    for (int i = 0; i < headers; i++) made->headers.push_back({names[i], texts[i]});
    return *program = made, SUCCESS;
}

int nvrtcDestroyProgram(void **program) {
    delete (Program *)*program;
    return *program = nullptr, SUCCESS;
}

int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    auto *p = (Program *)program;
    const char *folder = getenv("TMPDIR");
    std::string work = std::string(folder && *folder ? folder : "/tmp") + "/patchgpt-compile-XXXXXX";
    if (!mkdtemp(&work[0])) return p->log = "no temporary folder can be made at " + work, INTERNAL;
    std::vector<std::string> files{p->name};
    std::ofstream(work + "/" + p->name) << p->text;
    for (auto &[name, text] : p->headers) {
        std::ofstream(work + "/" + name) << text;
        files.push_back(name);
    }
    std::string home = emulator::library_folder(), compiler = emulator::beside("compiler"), check = emulator::beside("check");
    std::string object = work + "/kernel.o", library = work + "/kernel.so", log = work + "/log";
    std::vector<std::string> compile{compiler, "-x", "c++", "-c", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-exceptions",
                                     "-fno-rtti", "-fno-math-errno", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused", "-Wno-psabi", "-I" + home, "-I" + work,
                                     "-fmacro-prefix-map=" + work + "/="};
    std::vector<std::string> link{compiler, "-shared", "-o", library, object};
    if (check == "races") compile.insert(compile.end(), {"-O1", "-g1", "-fsanitize=thread"});
    else if (check == "address") {
        const char *sanitize = "-fsanitize=address,undefined";
        compile.insert(compile.end(), {"-O1", "-g1", sanitize, "-fno-sanitize-recover=undefined"});
        link.push_back(sanitize);
    } else compile.push_back("-O1");
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        // Options about GPUs mean nothing here.
        if (option.rfind("-D", 0) == 0 || option.rfind("--std=", 0) == 0) compile.push_back(option);
    }
    compile.insert(compile.end(), {"-o", object, work + "/" + p->name});
    bool done = run(compile, log) == 0 && run(link, log) == 0;
    p->log = contents(log);
    // Paths of this folder mean nothing to the reader.
    for (size_t at; (at = p->log.find(work + "/")) != std::string::npos;) p->log.erase(at, work.size() + 1);
    if (done) p->image = contents(library);
    for (auto &file : files) unlink((work + "/" + file).c_str());
    for (auto &file : {object, library, log}) unlink(file.c_str());
    rmdir(work.c_str());
    return done ? SUCCESS : COMPILATION;
}

int nvrtcGetProgramLogSize(void *program, size_t *bytes) { return *bytes = ((Program *)program)->log.size() + 1, SUCCESS; }
int nvrtcGetProgramLog(void *program, char *log) {
    auto &text = ((Program *)program)->log;
    memcpy(log, text.c_str(), text.size() + 1);
    return SUCCESS;
}
int nvrtcGetCUBINSize(void *program, size_t *bytes) { return *bytes = ((Program *)program)->image.size(), SUCCESS; }
int nvrtcGetCUBIN(void *program, char *image) {
    auto &bytes = ((Program *)program)->image;
    memcpy(image, bytes.data(), bytes.size());
    return SUCCESS;
}
}
