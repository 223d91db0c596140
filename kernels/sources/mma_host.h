// The host's side of mma.h: the same functions, by exchange among the fibres of a warp.
//
// A copy is made as late as a device may make it, at the wait, and until then its place holds NaN: a
// missing wait shows, and so does a copy into what others still read.
#pragma once

#include <queue>
#include <vector>

typedef uintptr_t SharedAddress;
static inline SharedAddress shared_address(const void* pointer) {
    return reinterpret_cast<SharedAddress>(pointer);
}

namespace host {

struct Row {
    unsigned short elements[8];
};

// The eight rows of a matrix are read at once where they lie in eight different groups of banks.
static inline void count_conflicts(const Exchanged<SharedAddress>& rows, unsigned first) {
    unsigned used[8] = {}, most = 0;
    for (unsigned i = 0; i < 8; i++) {
        const unsigned times = ++used[rows[first + i] / 16 % 8];
        most = times > most ? times : most;
    }
    bank_conflicts += most - 1;
}

template <bool transposed, int count>
static void load_matrices(unsigned (&to)[count], SharedAddress row, const char* what) {
    const unsigned lane = current % kLanes, g = lane / 4, t = lane % 4;
    const Exchanged<SharedAddress> rows = exchange(row, what);
    for (unsigned matrix = 0; matrix < count; matrix++) {
        if (lane == 0) count_conflicts(rows, matrix * 8);
        unsigned short pair[2];
        for (unsigned i = 0; i < 2; i++) {
            const unsigned r = transposed ? 2 * t + i : g, c = transposed ? g : 2 * t + i;
            const Row* from = reinterpret_cast<const Row*>(rows[matrix * 8 + r]);
            require_shared(from, sizeof(Row));
            pair[i] = from->elements[c];
        }
        to[matrix] = pair[0] | unsigned(pair[1]) << 16;
    }
}

template <class T>
static float element(unsigned pair, unsigned i) {
    return to_float(T{uint16_t(pair >> 16 * i)});
}

// A sum of tensor cores is cut off, not rounded (Fasi et al., 2021).
static inline float cut_off(double value) {
    const float nearest = float(value);
    return fabs(double(nearest)) > fabs(value) && isfinite(nearest) ? nextafterf(nearest, 0.0f)
                                                                    : nearest;
}

struct Copy {
    SharedAddress to;
    const void* from;
    bool inside;
};

struct Copies {
    unsigned block = 0;
    std::vector<Copy> open;
    std::queue<std::vector<Copy>> groups;
};
static Copies copies[kMostThreads];

// Those of this thread; what a block before it left behind is forgotten.
static inline Copies& own_copies() {
    Copies& own = copies[current];
    if (own.block != block_number) own = Copies{block_number, {}, {}};
    return own;
}

}  // namespace host

template <bool transposed = false>
static inline void load_matrices(unsigned (&to)[4], SharedAddress row) {
    host::load_matrices<transposed>(to, row, transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4");
}
template <bool transposed = false>
static inline void load_matrices(unsigned (&to)[2], SharedAddress row) {
    host::load_matrices<transposed>(to, row, transposed ? "ldmatrix.x2.trans" : "ldmatrix.x2");
}

template <class T>
static inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Fragments {
        float a[8], b[4];
    } mine;
    for (int i = 0; i < 8; i++) mine.a[i] = host::element<T>(a[i / 2], i % 2);
    for (int i = 0; i < 4; i++) mine.b[i] = host::element<T>(i < 2 ? b0 : b1, i % 2);
    const unsigned lane = host::current % host::kLanes, g = lane / 4, t = lane % 4;
    const host::Exchanged<Fragments> all = host::exchange(mine, "mma.m16n8k16");
    for (unsigned i = 0; i < 4; i++) {
        const unsigned below = i / 2, column = 2 * t + i % 2;  // row g + 8 * below
        double sum = c[i];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned upper = k / 8, quad = k % 8 / 2, odd = k % 2;
            const double x = all[g * 4 + quad].a[upper * 4 + below * 2 + odd];
            sum += x * all[column * 4 + quad].b[upper * 2 + odd];
        }
        c[i] = host::cut_off(sum);
    }
}

template <class T>
static inline unsigned pack(float low, float high) {
    T pair[2];
    store(pair, low);
    store(pair + 1, high);
    return pair[0].bits | unsigned(pair[1].bits) << 16;
}

static inline void copy_async(SharedAddress to, const void* from, bool inside) {
    host::require_shared(reinterpret_cast<void*>(to), 16);
    host::require(!inside || uintptr_t(from) % 16 == 0, "a copy from an address that is not aligned");
    memset(reinterpret_cast<void*>(to), 0xFF, 16);
    host::own_copies().open.push_back({to, from, inside});
}
static inline void commit_copies() {
    host::Copies& own = host::own_copies();
    own.groups.push(std::move(own.open));
    own.open.clear();
}
template <int pending>
static inline void wait_copies() {
    host::Copies& own = host::own_copies();
    for (; own.groups.size() > pending; own.groups.pop())
        for (const host::Copy& copy : own.groups.front()) {
            void* const to = reinterpret_cast<void*>(copy.to);
            if (copy.inside)
                memcpy(to, copy.from, 16);
            else
                memset(to, 0, 16);
        }
}
