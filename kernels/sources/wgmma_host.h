// The host's side of wgmma: each thread works out its own sums, from shared memory as the matrix
// descriptors say. They hold NaN until the wait.
#pragma once

#include <deque>
#include <limits>
#include <vector>

#include "mma_host.h"
#include "window_host.h"

namespace host {

// Where an element of a matrix lies, by its descriptor ("Matrix Descriptor Format" and "Strides" of
// wgmma): `place` counts rows of A or columns of B, `depth` along K. `across` is a matrix whose
// neighbours in memory are neighbours in `place`, else they are neighbours along K.
static unsigned element_address(uint64_t descriptor, bool across, unsigned place, unsigned depth) {
    static const unsigned spans[] = {0, 128, 64, 32};
    const unsigned start = unsigned(descriptor & 0x3FFF) << 4;
    const unsigned leading = unsigned(descriptor >> 16 & 0x3FFF) << 4;
    const unsigned stride = unsigned(descriptor >> 32 & 0x3FFF) << 4;
    const unsigned span = spans[descriptor >> 62];
    if (across) {
        const unsigned unit = span ? span / 2 : 8;
        const unsigned by_place = span ? leading : stride, by_depth = span ? stride : leading;
        return swizzled(start + place / unit * by_place + place % unit * 2 +
                            depth / 8 * by_depth + depth % 8 * (span ? span : 16),
                        span);
    }
    if (!span)
        return start + place / 8 * stride + place % 8 * 16 + depth / 8 * leading + depth % 8 * 2;
    return swizzled(start + place / 8 * stride + place % 8 * span + depth * 2, span);
}

static void require_descriptor(uint64_t descriptor) {
    require(!(descriptor & 0x3FFEC000C000C000ull) && !(descriptor >> 49 & 7),
            "a matrix descriptor with bits that have no meaning here");
}

struct Product {
    float* d;
    int columns, accumulate;
    const unsigned (*fragment)[4];  // of A, or null where `a` says where A lies
    uint64_t a, b;
    bool b_across;
    float (*widen)(uint16_t);
};

struct Accumulators {
    float* d;
    int count, pending;  // products not done yet
    float values[128];
};

// What a thread has under way.
struct Products {
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
    std::deque<Accumulators> accumulators;
    bool fenced;
    uint64_t history;  // of all products, to be the same in a warpgroup
};
static Products products[kMostThreads];

static Accumulators& accumulators_of(float* d, int count) {
    for (Accumulators& found : products[current].accumulators)
        if (found.d == d) return found;
    products[current].accumulators.push_back({d, count, 0, {}});
    Accumulators& made = products[current].accumulators.back();
    memcpy(made.values, d, sizeof(float) * unsigned(count));
    return made;
}

// Rows g and g + 8 of this warp's sixteen, from registers of the four threads that hold them.
static void rows_from_registers(const Product& mine, float (&rows)[2][16],
                                const Product* const (&quad)[4]) {
    for (unsigned k = 0; k < 16; k++)
        for (unsigned below = 0; below < 2; below++) {
            const unsigned pair = (*quad[k % 8 / 2]->fragment)[k / 8 * 2 + below];
            rows[below][k] = mine.widen(uint16_t(pair >> k % 2 * 16));
        }
}

// A row of A, or a column of B.
static void read_line(const Product& product, uint64_t descriptor, bool across, unsigned place,
                      float (&line)[16]) {
    const unsigned width = across ? 1 : 8;  // neighbours along K that lie together
    for (unsigned k = 0; k < 16; k += width) {
        uint16_t bits[8];
        memcpy(bits, at_window(element_address(descriptor, across, place, k), 2 * width),
               2 * width);
        for (unsigned i = 0; i < width; i++) line[k + i] = product.widen(bits[i]);
    }
}

static void multiply(const Product& product, const Product* const (&quad)[4]) {
    const unsigned lane = current % kLanes, warp = current / kLanes % 4;
    float rows[2][16];
    if (product.fragment)
        rows_from_registers(product, rows, quad);
    else
        for (unsigned below = 0; below < 2; below++)
            read_line(product, product.a, false, warp * 16 + lane / 4 + 8 * below, rows[below]);
    Accumulators& sums = accumulators_of(product.d, product.columns / 2);
    for (unsigned i = 0; i < unsigned(product.columns) / 4; i++) {
        const unsigned column = i / 2 * 8 + lane % 4 * 2 + i % 2;
        float filter[16];
        read_line(product, product.b, product.b_across, column, filter);
        for (unsigned below = 0; below < 2; below++) {
            float& value = sums.values[i / 2 * 4 + below * 2 + i % 2];
            double sum = product.accumulate ? value : 0.0;
            for (unsigned k = 0; k < 16; k++) sum += double(rows[below][k]) * filter[k];
            value = cut_off(sum);
        }
    }
    sums.pending--;
}

static void begin_product(const Product& product) {
    Products& own = products[current];
    require(own.fenced, "a product of a warpgroup before wgmma.fence");
    if (!product.fragment) require_descriptor(product.a);
    require_descriptor(product.b);
    own.history = (own.history ^ product.a ^ product.b << 1 ^ unsigned(product.columns) ^
                   uint64_t(product.accumulate != 0) << 9) *
                  0x9E3779B97F4A7C15ull;
    accumulators_of(product.d, product.columns / 2).pending++;
    for (int i = 0; i < product.columns / 2; i++)
        product.d[i] = std::numeric_limits<float>::quiet_NaN();
    own.open.push_back(product);
    if (!backwards) return;
    const Product* mine = &own.open.back();
    const Exchanged<const Product*> warp = exchange(mine, "wgmma");
    const Product* quad[4];
    for (unsigned i = 0; i < 4; i++) quad[i] = warp[current % kLanes / 4 * 4 + i];
    multiply(product, quad);
    exchange(0, "wgmma done");
}

static void wait_products(unsigned pending) {
    Products& own = products[current];
    // All of a warp wait together, and none goes on before the products of all are done.
    const Exchanged<Products*> warp = exchange(&own, "wgmma.wait_group");
    size_t group = 0;
    for (; !backwards && group + pending < own.groups.size(); group++)
        for (size_t i = 0; i < own.groups[group].size(); i++) {
            const Product* quad[4];
            for (unsigned lane = 0; lane < 4; lane++) {
                const Products& other = *warp[current % kLanes / 4 * 4 + lane];
                require(other.groups.size() == own.groups.size() &&
                            other.groups[group].size() == own.groups[group].size(),
                        "threads of one warp in different products");
                quad[lane] = &other.groups[group][i];
            }
            multiply(own.groups[group][i], quad);
        }
    exchange(0, "wgmma.wait_group done");
    while (own.groups.size() > pending) own.groups.pop_front();
    for (size_t i = 0; i < own.accumulators.size();) {
        Accumulators& done = own.accumulators[i];
        bool in_a_group = false;
        for (const std::vector<Product>& later : own.groups)
            for (const Product& product : later) in_a_group |= product.d == done.d;
        for (const Product& product : own.open) in_a_group |= product.d == done.d;
        if (in_a_group) {
            i++;
            continue;
        }
        memcpy(done.d, done.values, sizeof(float) * unsigned(done.count));
        own.accumulators.erase(own.accumulators.begin() + long(i));
    }
    own.fenced = false;
}

static void begin_wgmma() {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z * cluster_blocks;
    for (unsigned i = 0; i < threads; i++) products[i] = Products{};
}
static bool advance_wgmma() { return false; }
static const char* end_wgmma() {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z * cluster_blocks;
    for (unsigned i = 0; i < threads; i++) {
        if (!products[i].open.empty() || !products[i].groups.empty())
            return "a block ended before its products";
        if (products[i].history != products[i / 128 * 128].history)
            return "threads of one warpgroup in different products";
    }
    return nullptr;
}
static Unit wgmma_unit{begin_wgmma, advance_wgmma, end_wgmma, nullptr};
static Install install_wgmma{&wgmma_unit};

}  // namespace host

static inline void wgmma_fence() {
    host::exchange(0, "wgmma.fence");
    host::products[host::current].fenced = true;
}
static inline void wgmma_commit() {
    host::Products& own = host::products[host::current];
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}
template <int pending>
static inline void wgmma_wait() {
    host::wait_products(pending);
}
template <int count>
static inline void settle(float (&)[count]) {}
template <int count>
static inline void settle(unsigned (&)[count][4]) {}

template <class T>
static float widened(uint16_t bits) {
    return to_float(T{bits});
}
template <class T, int N>
static inline void wgmma(float (&d)[N / 2], Descriptor a, Descriptor b, int accumulate) {
    host::begin_product({d, N, accumulate, nullptr, a, b, false, widened<T>});
}

// The registers of A are read when the product is done: they must stay as they are until its wait.
template <class T, int N>
static inline void wgmma_across(float (&d)[N / 2], const unsigned (&a)[4], Descriptor b,
                                int accumulate) {
    host::begin_product({d, N, accumulate, &a, 0, b, true, widened<T>});
}
