// Blocks of fibers: one fiber for each GPU thread, switched at barriers and warp functions, in an order that a seed decides.
//
// Which order matters: choosing every thread uniformly keeps warps in step and hides mistakes. So warps have random priorities, partly
// reshuffled at random moments, which lets one run far ahead of another; lanes of the chosen warp run in a random rotation.
#include "emulator.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#if EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers and the stack pointer, and continues where the other stack left off.
extern "C" void emulator_switch(void **save, void *to);
#if defined(__x86_64__)
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch,.-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,%function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch,.-emulator_switch
)");
#else
#error "the emulator knows x86-64 and aarch64"
#endif

extern "C" EmulatedThread *emulated_thread;
EmulatedThread *emulated_thread = nullptr;

namespace emulator {

Block block;

namespace {

void *scheduler_stack_pointer = nullptr;
#if EMULATOR_ASAN
void *scheduler_fake_stack = nullptr;
const void *scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif
std::vector<char *> free_stacks;

/// A stack with an inaccessible page below it.
char *take_stack() {
    if (!free_stacks.empty()) {
        char *stack = free_stacks.back();
        free_stacks.pop_back();
        return stack;
    }
    constexpr size_t guard = 64 << 10;
    void *memory = mmap(nullptr, STACK_BYTES + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "the emulator has no memory for the stacks of threads\n");
        abort();
    }
    mprotect(memory, guard, PROT_NONE);
    return (char *)memory + guard;
}

void give_stack(char *stack) {
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
    free_stacks.push_back(stack);
}

void make_ready(Fiber &fiber) {
    fiber.state = State::Ready;
    block.warps[fiber.place.warp].ready |= 1u << fiber.place.lane;
    block.ready++;
}

void to_scheduler() {
    Fiber *me = block.current;
#if EMULATOR_ASAN
    bool gone = me->state == State::Done || block.aborted;
    __sanitizer_start_switch_fiber(gone ? nullptr : &me->fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
    emulator_switch(&me->stack_pointer, scheduler_stack_pointer);
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(me->fake_stack, nullptr, nullptr);
#endif
}

void open_barrier() {
    block.waiting = 0;
    block.epoch++;
    if (checking()) merge_clocks(block.fibers.data(), (unsigned)block.fibers.size(), ~0u);
    for (Fiber &fiber : block.fibers)
        if (fiber.state == State::Barrier) make_ready(fiber);
}

/// The first function on a fiber's stack.
void begin() {
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    const Launch &launch = *block.launch;
    launch.entry->call(const_cast<void **>(launch.arguments.data()));
    Fiber &me = *block.current;
    me.state = State::Done;
    block.alive--;
    block.warps[me.place.warp].exited |= 1u << me.place.lane;
    if (!me.open.empty() || !me.groups.empty())
        fail("the thread ends with asynchronous copies under way: wait for them");
    if (products_under_way()) fail("the thread ends with products of its warpgroup under way: wgmma_wait is missing");
    if (block.waiting) fail(std::string("the thread ends while others wait at the barrier at ") + [] {
        for (Fiber &fiber : block.fibers)
            if (fiber.state == State::Barrier) return fiber.site;
        return "?";
    }());
    to_scheduler();
    abort();
}

void start(Fiber &fiber) {
    fiber.stack = take_stack();
    // Different places in the cache for the frames of neighbours.
    void **top = (void **)(fiber.stack + STACK_BYTES - 64 * (fiber.place.thread.x & 15));
#if defined(__x86_64__)
    top -= 2;
    *--top = nullptr;
    *--top = (void *)begin;
    for (int i = 0; i < 6; i++) *--top = nullptr;
#else
    top -= 20;
    memset(top, 0, 160);
    top[11] = (void *)begin; // x30
#endif
    fiber.stack_pointer = top;
}

void resume(Fiber &fiber) {
    if (!fiber.stack) start(fiber);
    block.current = &fiber;
    emulated_thread = &fiber.place;
#if EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK_BYTES);
#endif
    emulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    if (fiber.state == State::Done && fiber.stack) {
        give_stack(fiber.stack);
        fiber.stack = nullptr;
    }
}

/// Every byte 0xff: NaN as a float of any size, -1 as an integer.
void poison(char *begin, size_t bytes) {
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(begin, bytes);
#endif
    memset(begin, 0xff, bytes);
}

std::string deadlock() {
    unsigned barrier = 0, meeting = 0, waiting = 0;
    const char *site = nullptr;
    std::string awaited;
    for (Fiber &fiber : block.fibers) {
        waiting += fiber.state == State::Waiting;
        if (fiber.state == State::Waiting) awaited = fiber.awaited;
        barrier += fiber.state == State::Barrier;
        meeting += fiber.state == State::Collective;
        if (fiber.state == State::Barrier) site = fiber.site;
    }
    std::string out = "deadlock: " + std::to_string(barrier) + " threads wait at a barrier";
    if (site) out += std::string(" (") + site + ")";
    if (waiting) out += ", " + std::to_string(waiting) + " for " + awaited;
    return out + ", " + std::to_string(meeting) + " in a warp function that not all lanes of its mask reach";
}

void run_block(uint3 at, Random &random) {
    const Launch &launch = *block.launch;
    unsigned threads = launch.threads.x;
    block.random = random;
    block.alive = threads;
    block.ready = block.waiting = 0;
    block.epoch = 0;
    block.fibers.assign(threads, Fiber());
    block.warps.assign((threads + 31) / 32, Warp());
    block.mbarriers.clear(), block.loads.clear();
    for (NamedBarrier &barrier : block.named) barrier = NamedBarrier();
    block.product_log.assign(threads / 128, {});
    block.registers.assign((threads + 127) / 128, 0);
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = block.fibers[i];
        fiber.place = {{i, 0, 0}, at, launch.threads, launch.blocks, i & 31, i >> 5};
        make_ready(fiber);
    }
    for (SharedVariable &variable : block.variables) poison(block.shared + variable.offset, variable.bytes);
    if (launch.dynamic_shared) poison(block.dynamic, launch.dynamic_shared);
    check_block();

    unsigned warps = (unsigned)block.warps.size();
    std::vector<unsigned> order(warps);
    for (unsigned i = 0; i < warps; i++) order[i] = i;
    for (unsigned i = warps; i > 1; i--) std::swap(order[i - 1], order[block.random.below(i)]);
    while ((block.ready || !block.loads.empty()) && !block.aborted) {
        uint64_t dice = block.random.next();
        // Copies land late, in any order: when nobody else can go on, or now and then before.
        if (!block.loads.empty() && (!block.ready || (dice >> 8 & 63) == 0)) {
            if (!block.alive) break;
            land(block.random.below((unsigned)block.loads.size()));
            continue;
        }
        if (warps > 1 && (dice & 63) == 0) std::swap(order[block.random.below(warps)], order[block.random.below(warps)]);
        unsigned chosen = 0;
        while (!block.warps[order[chosen]].ready) chosen++;
        Warp &warp = block.warps[order[chosen]];
        unsigned turn = dice >> 40 & 31;
        unsigned turned = turn ? warp.ready >> turn | warp.ready << (32 - turn) : warp.ready;
        unsigned lane = (__builtin_ctz(turned) + turn) & 31;
        warp.ready &= ~(1u << lane);
        block.ready--;
        resume(block.fibers[order[chosen] * 32 + lane]);
    }
    if (!block.aborted && block.alive) block.error = deadlock();
    if (!block.aborted && !block.alive && !block.loads.empty())
        block.error = "the block ends with copies into its shared memory under way: wait for their mbarriers";
    for (Fiber &fiber : block.fibers)
        if (fiber.stack) give_stack(fiber.stack);
    random = block.random;
    random.next();
}

std::string place() {
    const EmulatedThread &p = *emulated_thread;
    char text[120];
    snprintf(text, sizeof text, " [block %u,%u,%u thread %u]", p.block.x, p.block.y, p.block.z, p.thread.x);
    return text;
}

} // namespace

std::string run(const Launch &launch) {
    if (!block.shared) {
        void *memory = mmap(nullptr, STATIC_ARENA + SHARED_BYTES + 4096, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return "the emulator has no memory for shared memory";
        block.shared = (char *)memory;
        block.dynamic = block.shared + STATIC_ARENA;
    }
    block.launch = &launch;
    block.error.clear();
    block.aborted = false;
    block.variables.clear();
    block.static_used = 0;
#if EMULATOR_ASAN
    __asan_poison_memory_region(block.shared, STATIC_ARENA + SHARED_BYTES);
    __asan_unpoison_memory_region(block.dynamic, launch.dynamic_shared);
#endif
    check_launch(launch);
    Random random(launch.seed);
    uint64_t count = (uint64_t)launch.blocks.x * launch.blocks.y * launch.blocks.z;
    std::vector<uint32_t> order(count);
    for (uint64_t i = 0; i < count; i++) order[i] = (uint32_t)i;
    for (uint64_t i = count; i > 1; i--) std::swap(order[i - 1], order[random.below((unsigned)i)]);
    for (uint32_t index : order) {
        block.index = index;
        run_block({index % launch.blocks.x, index / launch.blocks.x % launch.blocks.y, index / launch.blocks.x / launch.blocks.y},
                  random);
        if (!block.error.empty()) break;
    }
    block.launch = nullptr;
    return block.error;
}

void fail(const std::string &message) {
    if (block.error.empty()) block.error = message + place();
    block.aborted = true;
    to_scheduler();
    abort();
}

void wake(Fiber &fiber) { make_ready(fiber); }

void wait_for(const std::string &what) {
    block.current->state = State::Waiting;
    block.current->awaited = what;
    to_scheduler();
}

void yield() {
    make_ready(*block.current);
    to_scheduler();
}

void meet(unsigned mask, void (*function)(unsigned, void **), void *argument) {
    Fiber &me = *block.current;
    Warp &warp = block.warps[me.place.warp];
    if (!(mask >> me.place.lane & 1)) fail("a warp function is called by a lane that its mask does not name");
    if (mask & warp.exited) fail("a warp function's mask names a lane that has ended");
    Meeting &meeting = warp.meetings[__builtin_ctz(mask)];
    if (!meeting.arrived) meeting = {mask, 0, function};
    else if (meeting.mask != mask || meeting.function != function)
        fail("lanes of one mask meet in different warp functions");
    warp.arguments[me.place.lane] = argument;
    meeting.arrived |= 1u << me.place.lane;
    me.state = State::Collective;
    if (meeting.arrived == mask) {
        function(mask, warp.arguments);
        meeting.arrived = 0;
        warp.epoch++;
        if (warp.acquired) {
            merge_clocks(&block.fibers[me.place.warp * 32], 32, mask);
            warp.acquired = false;
        }
        for (unsigned lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) make_ready(block.fibers[me.place.warp * 32 + lane]);
    }
    to_scheduler();
}

std::string describe(const void *address) {
    const char *p = (const char *)address;
    for (SharedVariable &variable : block.variables) {
        char *begin = block.shared + variable.offset;
        if (p >= begin && p < begin + variable.bytes)
            return "byte " + std::to_string(p - begin) + " of the shared `" + variable.name + "`";
    }
    if (p >= block.dynamic && p < block.dynamic + SHARED_BYTES)
        return "byte " + std::to_string(p - block.dynamic) + " of the " + std::to_string(block.launch->dynamic_shared) +
               " bytes of dynamic shared memory";
    if (Region *region = region_of(address))
        return "byte " + std::to_string(p - region->begin) + " of a device allocation of " + std::to_string(region->bytes) + " bytes";
    char text[64];
    snprintf(text, sizeof text, "the address %p, which nothing holds", address);
    return text;
}

} // namespace emulator

using namespace emulator;

void emulated_fail(const char *message) { fail(message); }

void emulated_sync_block(const char *site) {
    Fiber &me = *block.current;
    if (block.alive != block.fibers.size()) fail(std::string("a barrier at ") + site + " after some threads of the block have ended");
    me.site = site;
    if (block.waiting)
        for (Fiber &fiber : block.fibers)
            if (fiber.state == State::Barrier) {
                if (strcmp(fiber.site, site) != 0)
                    fail(std::string("threads of one block wait at different barriers: ") + fiber.site + " and " + site);
                break;
            }
    me.state = State::Barrier;
    if (++block.waiting == block.alive) open_barrier();
    to_scheduler();
}

void *emulated_shared(const void *key, size_t bytes, const char *name) {
    for (SharedVariable &variable : block.variables)
        if (variable.key == key) return block.shared + variable.offset;
    // A gap between variables, so that leaving one is noticed.
    size_t offset = (block.static_used + 255) / 128 * 128;
    size_t used = bytes;
    for (SharedVariable &variable : block.variables) used += variable.bytes;
    if (used > (48 << 10)) fail("more than 48 KiB of static shared memory; use DYNAMIC_SHARED");
    if (used + block.launch->dynamic_shared > SHARED_BYTES || offset + bytes > STATIC_ARENA) fail("more shared memory than a block can have");
    block.static_used = offset + bytes;
    block.variables.push_back({key, name, offset, bytes});
    poison(block.shared + offset, bytes);
    return block.shared + offset;
}

void *emulated_dynamic_shared() {
    if (!block.launch->dynamic_shared) fail("the kernel uses dynamic shared memory, and the launch gives none");
    return block.dynamic;
}

void emulated_aligned(const void *address, size_t bytes) {
    if ((uintptr_t)address % bytes != 0)
        fail("an access of " + std::to_string(bytes) + " bytes at an address that is no multiple of that: " + describe(address));
}
