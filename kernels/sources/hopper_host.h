// The host's side of hopper.h. Copies and products of a chip run on their own; here, in the ordinary
// order, a copy is made at once and a product as late as its wait, so that whoever writes over what
// is still read shows; with HOST_CUDA_ORDER=reverse a copy is made when no thread can go on, the
// latest first, and a product at once, so that whoever reads too early shows. What a chip leaves
// undefined ends the launch with a message.
#pragma once

#include <vector>

#include "wgmma_host.h"

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

// A barrier's eight bytes.
struct Phase {
    uint16_t count, pending;
    int32_t bytes : 31;
    uint32_t parity : 1;
};
static_assert(sizeof(Phase) == 8, "a barrier's eight bytes");

static Phase* phase_of(unsigned long long* barrier) {
    Phase* phase = reinterpret_cast<Phase*>(barrier);
    const bool begun = phase->count && phase->count != 0xFFFF;  // what shared memory is poisoned with
    require(begun, "a barrier in shared memory that was never begun");
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

static void begin_hopper() {
    tiles.clear();
    memset(published, 0, sizeof published);
    memset(named, 0, sizeof named);
    all_blocks = {};
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
static inline void leave_cluster() { cluster_barrier(); }

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

template <int count>
static inline void shrink_registers() {}
template <int count>
static inline void grow_registers() {}
