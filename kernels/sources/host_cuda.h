// CUDA's language on the host, so that a kernel's own source runs under a C++ compiler.
//
// Each thread of a block is a fibre; a barrier hands control back until all have arrived. Blocks run
// one after the other, those of a cluster side by side. HOST_CUDA_ORDER=reverse runs threads and
// blocks backwards, so that a result which leans on an order shows. Shared memory is poisoned before
// each block: NaN and true, or zero and false where all goes backwards. A barrier that not all threads
// reach ends the launch with a message, and so does a wait for what nobody does, or a write past the
// end of the dynamic shared memory.
#pragma once
#include <ucontext.h>

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Index3 {
    unsigned x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

namespace host {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kStack = 64 * 1024;
constexpr size_t kMostShared = 227 * 1024;  // of any chip
constexpr size_t kGuard = 1024;             // bytes behind the dynamic shared memory
constexpr unsigned kMostCluster = 2;        // blocks side by side
constexpr size_t kSlot = 64;                // bytes of one thread in a warp's exchange
enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kWaiting, kDone };

// What a thread may wait for, and what to say where that never comes.
struct Condition {
    bool (*met)(const void* what, uint64_t value);
    const void* what;
    uint64_t value;
    const char* never;
};

struct Fibre {
    jmp_buf here;
    State state;
    Index3 index, block;
    unsigned rank;  // of its block in the cluster
    char* stack;
    bool running;          // it has been entered, and goes from one block to the next
    const char* exchange;  // the warp's exchange it waits in
    unsigned turn;         // exchanges so far in this block
    Condition condition;   // what it waits for
};

// A part of the chip beside the threads. It is set up before each block, told to go on when no
// thread can (false: it has nothing left to do), and asked for trouble at the block's end.
struct Unit {
    void (*begin)();
    bool (*advance)();
    const char* (*end)();
    Unit* next;
};
static Unit* units;
struct Install {
    explicit Install(Unit* unit) {
        unit->next = units;
        units = unit;
    }
};

static Fibre fibres[kMostThreads];
static jmp_buf scheduler;
static unsigned current;
static bool backwards;
static void (*body)(void*);
static void* body_arguments;
static const char* failure;
static unsigned long bank_conflicts;  // of this launch: times that ldmatrix had to go again
static unsigned block_number;  // of this launch, and never again of another
alignas(1024) static char dynamic_memory[kMostCluster][kMostShared + kGuard];
static char* dynamic_shared = dynamic_memory[0];  // of the block whose thread runs
static size_t dynamic_bytes;
static unsigned cluster_blocks = 1;  // as the launch says
// Two of each thread, by turns: who writes into the first again has seen all others at the second.
alignas(16) static char slots[2][kMostThreads][kSlot];

static void wait(State state) {
    Fibre& self = fibres[current];
    self.state = state;
    if (!_setjmp(self.here)) _longjmp(scheduler, 1);
}

// Ends the launch with a message.
static inline void fail(const char* message) {
    failure = message;
    _longjmp(scheduler, 1);
}

static inline void require(bool holds, const char* otherwise) {
    if (!holds) fail(otherwise);
}

// Goes on once the condition holds.
static inline void wait_until(const Condition& condition) {
    if (condition.met(condition.what, condition.value)) return;
    fibres[current].condition = condition;
    wait(State::kWaiting);
}

static inline void require_shared(const void* address, size_t bytes) {
    const char* at = static_cast<const char*>(address);
    const bool dynamic = at >= dynamic_shared && at + bytes <= dynamic_shared + dynamic_bytes;
    const bool fixed = at >= __start_shared_memory && at + bytes <= __stop_shared_memory;
    require(dynamic || fixed, "an address outside the shared memory of the block");
    require(uintptr_t(at) % bytes == 0, "an address in shared memory that is not aligned");
}

// What each thread of the warp gave.
template <class T>
struct Exchanged {
    const char (*slots)[kSlot];
    const T& operator[](unsigned lane) const { return *reinterpret_cast<const T*>(slots[lane]); }
};

// Each thread gives a value and goes on once all of its warp have; `what` names the instruction.
template <class T>
static Exchanged<T> exchange(const T& mine, const char* what) {
    static_assert(sizeof(T) <= kSlot, "one slot a thread");
    Fibre& self = fibres[current];
    char(*table)[kSlot] = slots[self.turn++ % 2];
    memcpy(table[current], &mine, sizeof(T));
    self.exchange = what;
    wait(State::kAtWarpBarrier);
    return {table + current / kLanes * kLanes};
}

static void enter() {
    for (;;) {
        body(body_arguments);
        wait(State::kDone);
    }
}

// Jumps cost no system call, unlike swapcontext; a context only serves to enter a new stack.
static void go_on(Fibre& fibre) {
    if (_setjmp(scheduler)) return;
    if (fibre.running) _longjmp(fibre.here, 1);
    fibre.running = true;
    ucontext_t context;
    getcontext(&context);
    if (!fibre.stack) fibre.stack = static_cast<char*>(malloc(kStack));
    context.uc_stack.ss_sp = fibre.stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    setcontext(&context);
}

// Lets those waiting for one another go on, once all of them are there.
static bool release(State barrier, unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; i++)
        if (fibres[i].state != barrier) return false;
    if (barrier == State::kAtWarpBarrier)
        for (unsigned i = first; i < first + count; i++)
            if (strcmp(fibres[i].exchange, fibres[first].exchange))
                failure = "threads of one warp in different exchanges";
    for (unsigned i = first; i < first + count; i++) fibres[i].state = State::kReady;
    return true;
}

static bool can_go_on(Fibre& fibre) {
    if (fibre.state == State::kWaiting &&
        fibre.condition.met(fibre.condition.what, fibre.condition.value))
        fibre.state = State::kReady;
    return fibre.state == State::kReady;
}

// As far as the threads of a warp get without other warps; whether any went on.
static bool run_warp(unsigned warp, unsigned threads) {
    const unsigned first = warp * kLanes;
    const unsigned count = threads - first < kLanes ? threads - first : kLanes;
    bool ever = false;
    for (bool ran = true; ran && !failure;) {
        ran = false;
        for (unsigned step = 0; step < count && !failure; step++) {
            current = first + (backwards ? count - 1 - step : step);
            if (!can_go_on(fibres[current])) continue;
            threadIdx = fibres[current].index;
            blockIdx = fibres[current].block;
            dynamic_shared = dynamic_memory[fibres[current].rank];
            go_on(fibres[current]);
            ran = true;
        }
        ran |= release(State::kAtWarpBarrier, first, count);
        ever |= ran;
    }
    return ever;
}

static bool advance_units() {
    for (Unit* unit = units; unit; unit = unit->next)
        if (unit->advance()) return true;
    return false;
}

// Why no thread can go on.
static const char* standstill(unsigned threads) {
    const char* why = "a barrier that not all threads of the block reach";
    for (unsigned i = 0; i < threads; i++) {
        if (fibres[i].state == State::kWaiting) return fibres[i].condition.never;
        if (fibres[i].state == State::kAtWarpBarrier)
            why = "a warp's exchange that not all its threads reach";
    }
    return why;
}

static bool guards_hold() {
    bool holds = true;
    for (unsigned rank = 0; rank < cluster_blocks; rank++)
        for (size_t i = 0; i < kGuard; i++)
            holds &= dynamic_memory[rank][dynamic_bytes + i] == char(0xA5);
    return holds;
}

static const char* end_block() {
    for (Unit* unit = units; unit; unit = unit->next)
        if (const char* trouble = unit->end()) return trouble;
    return guards_hold() ? nullptr : "a write past the end of shared memory";
}

// As far as the threads of a block get without other blocks; whether any went on. A warp runs as far
// as it can before the next one does, and a block before the next one of its cluster: the farther
// they are apart, the surer a missing barrier shows.
static bool run_block(unsigned rank, unsigned block_threads, unsigned threads) {
    const unsigned warps = (block_threads + kLanes - 1) / kLanes;
    bool ever = false;
    for (bool ran = true; ran && !failure;) {
        ran = false;
        for (unsigned step = 0; step < warps && !failure; step++)
            ran |= run_warp(rank * warps + (backwards ? warps - 1 - step : step), threads);
        ran |= release(State::kAtBlockBarrier, rank * block_threads, block_threads);
        ever |= ran;
    }
    return ever;
}

// A block, or those of a cluster: `first` and the next ones along x.
static const char* run_cluster(const Index3& first, unsigned block_threads) {
    const int poison = backwards ? 0 : 0xFF;
    if (__start_shared_memory)
        memset(__start_shared_memory, poison, size_t(__stop_shared_memory - __start_shared_memory));
    for (unsigned rank = 0; rank < cluster_blocks; rank++) {
        memset(dynamic_memory[rank], poison, dynamic_bytes);
        memset(dynamic_memory[rank] + dynamic_bytes, 0xA5, kGuard);
    }
    block_number++;
    for (Unit* unit = units; unit; unit = unit->next) unit->begin();
    const unsigned threads = block_threads * cluster_blocks;
    for (unsigned i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        const unsigned thread = i % block_threads;
        fibre.state = State::kReady;
        fibre.turn = 0;
        fibre.rank = i / block_threads;
        fibre.block = {first.x + fibre.rank, first.y, first.z};
        fibre.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                       thread / (blockDim.x * blockDim.y)};
    }
    for (;;) {
        bool ran = false;
        for (unsigned step = 0; step < cluster_blocks; step++)
            ran |= run_block(backwards ? cluster_blocks - 1 - step : step, block_threads, threads);
        if (failure) return failure;
        bool done = true;
        for (unsigned i = 0; i < threads; i++) done &= fibres[i].state == State::kDone;
        if (done) return end_block();
        if (!ran && !advance_units()) return standstill(threads);
    }
}

static const char* run_grid(const unsigned* grid, const unsigned* block, const unsigned* cluster,
                            size_t shared_bytes) {
    const char* order = getenv("HOST_CUDA_ORDER");
    backwards = order && !strcmp(order, "reverse");
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    // In any other cluster blocks run one after another, and none reaches into another's memory.
    const bool along_x = cluster[1] == 1 && cluster[2] == 1 && cluster[0] <= kMostCluster;
    cluster_blocks = along_x ? cluster[0] : 1;
    const unsigned threads = block[0] * block[1] * block[2];
    if (threads > kMostThreads) return "more threads in a block than any chip takes";
    if (cluster_blocks > 1 && (threads % kLanes || threads * cluster_blocks > kMostThreads))
        return "a cluster of more threads than there are fibres, or of parts of warps";
    if (shared_bytes > kMostShared) return "more shared memory in a block than any chip has";
    dynamic_bytes = shared_bytes;
    failure = nullptr;
    bank_conflicts = 0;
    const size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    for (size_t step = 0; step < blocks; step += cluster_blocks) {
        const size_t i = backwards ? blocks - cluster_blocks - step : step;
        const Index3 first = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]),
                              unsigned(i / (size_t(grid[0]) * grid[1]))};
        if (const char* trouble = run_cluster(first, threads)) {
            for (Fibre& fibre : fibres) fibre.running = false;
            return trouble;
        }
    }
    if (bank_conflicts && getenv("HOST_CUDA_BANKS")) return "rows of a matrix in the same banks";
    return nullptr;
}

template <class... A>
struct Kernel {
    void (*function)(A...);
    void** arguments;

    template <size_t... I>
    void call(std::index_sequence<I...>) {
        function(*static_cast<A*>(arguments[I])...);
    }
    static void run(void* self) {
        static_cast<Kernel*>(self)->call(std::index_sequence_for<A...>{});
    }
};

template <class... A>
const char* launch(void (*function)(A...), const unsigned* grid, const unsigned* block,
                   const unsigned* cluster, unsigned shared_bytes, void** arguments) {
    Kernel<A...> kernel{function, arguments};
    body = Kernel<A...>::run;
    body_arguments = &kernel;
    return run_grid(grid, block, cluster, shared_bytes);
}

template <class F>
struct Sizes;
template <class... A>
struct Sizes<void (*)(A...)> {
    static constexpr unsigned value[] = {unsigned(sizeof(A))..., 0};
};

}  // namespace host

static inline void __syncthreads() { host::wait(host::State::kAtBlockBarrier); }
static inline void __threadfence() {}
static inline float sinpif(float x) { return float(sin(M_PI * x)); }
static inline float cospif(float x) { return float(cos(M_PI * x)); }

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int distance) {
    return host::exchange(value, "shuffle")[host::current % host::kLanes ^ unsigned(distance)];
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int lane) {
    return host::exchange(value, "shuffle of one lane")[unsigned(lane) % host::kLanes];
}
static inline void __syncwarp() { host::exchange(0, "warp barrier"); }

static inline unsigned atomicInc(unsigned* address, unsigned most) {
    const unsigned old = *address;
    *address = old >= most ? 0 : old + 1;
    return old;
}
static inline int atomicMin(int* address, int value) {
    const int old = *address;
    if (value < old) *address = value;
    return old;
}

// What the simulated drivers look for: the launch, and the sizes of the parameters.
#define HOST_KERNEL(name)                                                                     \
    extern "C" const char* host_launch_##name(const unsigned* grid, const unsigned* block,    \
                                              const unsigned* cluster, unsigned shared_bytes, \
                                              void** arguments) {                             \
        return host::launch(name, grid, block, cluster, shared_bytes, arguments);             \
    }                                                                                         \
    extern "C" {                                                                              \
    extern const unsigned* const host_sizes_##name;                                           \
    const unsigned* const host_sizes_##name = host::Sizes<decltype(&name)>::value;            \
    }
