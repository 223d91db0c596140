// The host's side of hopper.h. Copies and products of a chip run on their own; here, in the ordinary
// order, a copy is made at once and a product as late as its wait, so that whoever writes over what
// is still read shows; with HOST_CUDA_ORDER=reverse a copy is made when no thread can go on, the
// latest first, and a product at once, so that whoever reads too early shows. Registers of a product
// hold NaN until its wait. What a chip leaves undefined ends the launch with a message.
#pragma once

#include <deque>
#include <limits>
#include <vector>

#include "mma_host.h"

// As kernels/driver/tensor_map.py writes it; not aligned, since arguments are copied as they lie.
struct TensorMap {
    char magic[8];
    uint32_t rank, element_bytes;
    uint64_t address, sizes[5], strides[4];
    uint32_t box[5], swizzle, rest[2];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");
#define TENSOR_MAP(name) const TensorMap name

namespace host {

// The shared window of a block: as on sm_90 the first KiB is the system's, then dynamic, then static
// shared memory.
constexpr unsigned kWindow = 1024;
constexpr unsigned kStatic = kWindow + unsigned(kMostShared + kGuard);

static unsigned window_address(const void* pointer) {
    const char* at = static_cast<const char*>(pointer);
    if (at >= dynamic_shared && at <= dynamic_shared + dynamic_bytes)
        return kWindow + unsigned(at - dynamic_shared);
    require(at >= __start_shared_memory && at <= __stop_shared_memory,
            "an address outside the shared memory of the block");
    return kStatic + unsigned(at - __start_shared_memory);
}

static unsigned char* at_window(unsigned address, unsigned bytes) {
    char* const at = address >= kStatic ? __start_shared_memory + (address - kStatic)
                                        : dynamic_shared + int(address - kWindow);
    require_shared(at, 1);
    require_shared(at + bytes - 1, 1);
    return reinterpret_cast<unsigned char*>(at);
}

// The same place in a block of the cluster.
template <class T>
static T* in_block(T* pointer, unsigned rank) {
    const char* at = reinterpret_cast<const char*>(pointer);
    require(at >= dynamic_shared && at <= dynamic_shared + dynamic_bytes && rank < cluster_blocks,
            "a place in another block that is not in its dynamic shared memory");
    return reinterpret_cast<T*>(dynamic_memory[rank] + (at - dynamic_shared));
}

// The chunk of 16 bytes that takes this one's place: bits of the address itself are mixed.
static unsigned swizzled(unsigned address, unsigned span) {
    const unsigned mask = span / 16 - 1;  // 7, 3 or 1 for 128, 64 or 32 bytes
    return span ? address ^ (address >> 7 & mask) << 4 : address;
}

// A barrier's eight bytes.
struct Phase {
    uint16_t count, pending;
    int32_t bytes : 31;
    uint32_t parity : 1;
};
static_assert(sizeof(Phase) == 8, "a barrier's eight bytes");

static Phase* phase_of(unsigned long long* barrier) {
    Phase* phase = reinterpret_cast<Phase*>(barrier);
    require(phase->count != 0xFFFF, "a barrier in shared memory that was never begun");
    return phase;
}

static void end_if_complete(Phase* phase) {
    if (phase->pending || phase->bytes) return;
    phase->parity ^= 1;
    phase->pending = phase->count;
}

static void arrive(unsigned long long* barrier, unsigned bytes) {
    Phase* phase = phase_of(barrier);
    require(bytes < 1u << 20, "more bytes than a barrier counts");
    require(phase->pending > 0, "more arrivals in a phase than its barrier was begun for");
    phase->bytes += int(bytes);
    phase->pending--;
    end_if_complete(phase);
}

static bool phase_ended(const void* barrier, uint64_t parity) {
    return static_cast<const Phase*>(barrier)->parity != parity;
}

// Named barriers.
struct Named {
    unsigned arrived, threads, turn;
};
static Named named[kMostCluster][16];
static Named all_blocks;  // the barrier of the cluster
static bool turned(const void* turn, uint64_t seen) {
    return *static_cast<const unsigned*>(turn) != seen;
}

struct Tile {
    TensorMap map;
    unsigned char* to;
    unsigned address;  // of it in its block's window
    unsigned long long* barrier;
    int at[5];
};
static std::vector<Tile> tiles;  // under way
static bool published[kMostCluster];

static void copy_tile(const Tile& tile) {
    const TensorMap& map = tile.map;
    const unsigned row = map.box[0] * map.element_bytes;
    uint32_t rows = 1;
    for (int i = 1; i < 5; i++) rows *= map.box[i];
    for (uint32_t r = 0; r < rows; r++) {
        const unsigned char* from = reinterpret_cast<const unsigned char*>(map.address);
        bool inside = true;
        for (uint32_t i = 1, rest = r; i < 5; rest /= map.box[i], i++) {
            const int64_t place = int64_t(tile.at[i]) + rest % map.box[i];
            inside &= place >= 0 && uint64_t(place) < map.sizes[i];
            from += place * int64_t(map.strides[i - 1]);
        }
        for (uint32_t chunk = 0; chunk < row / 16; chunk++) {
            unsigned char bytes[16] = {};
            for (uint32_t i = 0; i < 16; i += map.element_bytes) {
                const int64_t x =
                    int64_t(tile.at[0]) + (chunk * 16 + i) / map.element_bytes;
                if (inside && x >= 0 && uint64_t(x) < map.sizes[0])
                    memcpy(bytes + i, from + x * map.element_bytes, map.element_bytes);
            }
            const unsigned place = swizzled(tile.address + r * row + chunk * 16, map.swizzle);
            memcpy(tile.to + int(place - tile.address), bytes, 16);
        }
    }
    Phase* phase = phase_of(tile.barrier);
    phase->bytes -= int(rows * row);
    end_if_complete(phase);
}

// `blocks` has a bit for each block of the cluster that gets the tile.
static void load_tile(void* to, const TensorMap& map, unsigned long long* barrier, int rank,
                      const int (&at)[5], unsigned blocks) {
    require(!memcmp(map.magic, "TILE MAP", 8), "no tensor map that this device has encoded");
    require(int(map.rank) == rank, "a tensor map of another number of dimensions");
    require(!map.swizzle || map.box[0] * map.element_bytes == map.swizzle,
            "rows of a box that do not fill their swizzle");
    require_shared(to, 128);
    require_shared(barrier, 8);
    unsigned bytes = map.element_bytes;
    for (uint32_t side : map.box) bytes *= side;
    const unsigned address = window_address(to);
    at_window(address, bytes);  // A swizzle keeps each chunk in its row.
    for (unsigned block = 0; block < kMostCluster; block++) {
        if (!(blocks >> block & 1)) continue;
        require(published[block], "a copy of a tile before its barrier was published");
        Tile tile{map, static_cast<unsigned char*>(in_block(static_cast<unsigned char*>(to), block)),
                  address, in_block(barrier, block), {}};
        phase_of(tile.barrier);
        memcpy(tile.at, at, sizeof at);
        if (backwards)
            tiles.push_back(tile);
        else
            copy_tile(tile);
    }
}

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

static void begin_hopper() {
    tiles.clear();
    memset(published, 0, sizeof published);
    memset(named, 0, sizeof named);
    all_blocks = {};
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z * cluster_blocks;
    for (unsigned i = 0; i < threads; i++) products[i] = Products{};
}
static bool advance_hopper() {
    if (tiles.empty()) return false;
    const Tile tile = tiles.back();
    tiles.pop_back();
    copy_tile(tile);
    return true;
}
static const char* end_hopper() {
    if (!tiles.empty()) return "a block ended before its copies of tiles";
    for (const auto& of_block : named)
        for (const Named& each : of_block)
            if (each.arrived) return "a block ended with a named barrier half reached";
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z * cluster_blocks;
    for (unsigned i = 0; i < threads; i++) {
        if (!products[i].open.empty() || !products[i].groups.empty())
            return "a block ended before its products";
        if (products[i].history != products[i / 128 * 128].history)
            return "threads of one warpgroup in different products";
    }
    return nullptr;
}
static Unit hopper{begin_hopper, advance_hopper, end_hopper, nullptr};
static Install install_hopper{&hopper};

}  // namespace host

static inline unsigned window_address(const void* pointer) { return host::window_address(pointer); }

static inline void barrier_begin(Barrier* barrier, unsigned arrivals) {
    host::require_shared(barrier, 8);
    host::require(arrivals > 0 && arrivals < 0xFFFF, "a barrier of too few or too many arrivals");
    const host::Phase phase{uint16_t(arrivals), uint16_t(arrivals), 0, 0};
    memcpy(barrier, &phase, 8);
}
static inline void publish_barriers() {
    host::published[host::fibres[host::current].rank] = true;
}
static inline void barrier_arrive(Barrier* barrier) {
    host::require_shared(barrier, 8);
    host::arrive(barrier, 0);
}
static inline void barrier_arrive_at(Barrier* barrier, unsigned rank) {
    host::arrive(host::in_block(barrier, rank), 0);
}
static inline void barrier_expect(Barrier* barrier, unsigned bytes) {
    host::require_shared(barrier, 8);
    host::arrive(barrier, bytes);
}
static inline void barrier_wait(Barrier* barrier, unsigned parity) {
    host::require_shared(barrier, 8);
    host::phase_of(barrier);
    host::wait_until({host::phase_ended, barrier, parity, "a wait for a phase that never ends"});
}

namespace host {

// One more thread at a barrier; the turn that it belongs to.
static unsigned count_in(Named& barrier, unsigned threads) {
    require(!barrier.arrived || barrier.threads == threads,
            "a named barrier of different numbers of threads");
    barrier.threads = threads;
    const unsigned turn = barrier.turn;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.turn++;
    }
    return turn;
}

static Named& own_named(int name, int threads) {
    require(name > 0 && name < 16 && threads % 32 == 0, "no named barrier of whole warps");
    return named[fibres[current].rank][name];
}

}  // namespace host

static inline void group_arrive(int name, int threads) {
    host::count_in(host::own_named(name, threads), unsigned(threads));
}
static inline void group_barrier(int name, int threads) {
    host::Named& barrier = host::own_named(name, threads);
    const unsigned turn = host::count_in(barrier, unsigned(threads));
    host::wait_until(
        {host::turned, &barrier.turn, turn, "a named barrier that too few threads reach"});
}
static inline void cluster_barrier() {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z * host::cluster_blocks;
    const unsigned turn = host::count_in(host::all_blocks, threads);
    host::wait_until({host::turned, &host::all_blocks.turn, turn,
                      "a barrier of the cluster that not all threads reach"});
}
#define HOST_CLUSTER(blocks) static const unsigned host_cluster = host::cluster_blocks = blocks;

static inline void require_aligned(const void* memory) {
    host::require(host::window_address(memory) % 1024 == 0, "shared memory that is not aligned");
}

static inline void prefetch_map(const TensorMap&) {}
static inline unsigned own_block() { return 1u << host::fibres[host::current].rank; }
static inline void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x, int y) {
    host::load_tile(to, map, barrier, 2, {x, y, 0, 0, 0}, own_block());
}
static inline void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x, int y, int z) {
    host::load_tile(to, map, barrier, 3, {x, y, z, 0, 0}, own_block());
}
static inline void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x, int y, int z,
                             int w) {
    host::load_tile(to, map, barrier, 4, {x, y, z, w, 0}, own_block());
}
static inline void share_tile(void* to, const TensorMap& map, Barrier* barrier, unsigned blocks,
                              int x, int y) {
    host::load_tile(to, map, barrier, 2, {x, y, 0, 0, 0}, blocks);
}

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

template <int count>
static inline void shrink_registers() {}
template <int count>
static inline void grow_registers() {}
