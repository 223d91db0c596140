// A persistent block of a product, for gemm_sm90.cu and conv_sm90.cu, which say how rows of A are
// found: Y = epilogue(A W^T), float32 sums.
//
// Three warpgroups. One thread of the first asks TMA for blocks of 64 along the depth, of A and of
// W, into a ring of STAGES; the other two multiply by wgmma, each its part of the tile, and store.
// A stage's `full` barrier ends a phase when all its bytes are there, its `empty` barrier when the
// eight warps of both multiplying warpgroups are done with it. The ring goes on from tile to tile, so
// that while one tile is stored the next one's first blocks already come.
//
// The depth of a tile may be split: each split leaves its sums in `partial`, thread by thread, and
// the last of a tile adds them in the order of the splits, so that every run gives the same bits.
//
// CLUSTER 2 sets two blocks side by side, whose tiles lie one below the other: each asks for half of
// the block of W that both want, for both. A stage is empty then when all sixteen warps are done. The
// launch says how large clusters are, and it alone: a driver may refuse what the image says already.
//
// With APART 1 each multiplying warpgroup takes tiles of its own, by turns: while one stores, the other
// multiplies. One begins when the other has asked for its last product: earlier it could not tell
// the phases of a barrier apart, of which it has only the parity.
//
// Constants: ELEMENT, TILE_ROWS, TILE_COLUMNS, STAGES, GEGLU (0 or 1), CLUSTER, APART, and
// GROUPS_DOWN: 2 where the two warpgroups share the rows of a tile, 1 where they share its columns.
#pragma once
#include "epilogue_sm90.h"
#include "hopper.h"

enum {
    kDepth = 64,  // elements of a stage along the depth: 128 bytes, what a swizzle spans
    kRowBytes = 128,
    kWarpgroup = 128,
    kThreads = 3 * kWarpgroup,
    kConsumers = 2 * kWarpgroup,
    kOwners = APART ? kWarpgroup : kConsumers,  // threads that share a tile
    kOwnerWarps = kOwners / 32,
    kGroupRows = APART ? TILE_ROWS : TILE_ROWS / GROUPS_DOWN,
    kGroupColumns = APART ? TILE_COLUMNS : TILE_COLUMNS * GROUPS_DOWN / 2,
    kStrips = kGroupRows / 64,  // wgmma has 64 rows
    kBytesOfA = TILE_ROWS * kRowBytes,
    kBytesOfW = TILE_COLUMNS * kRowBytes,
    kStageBytes = kBytesOfA + kBytesOfW,
    kStartRegisters = 168,  // as many as 384 threads can have
    kProducerRegisters = 40,
    kConsumerRegisters = 232,
    kBand = 16 / CLUSTER,  // rows of tiles (of clusters) done together, for the sake of L2
    kSharedColumns = TILE_COLUMNS / CLUSTER,  // of W, that one block of a cluster asks for
};
static_assert(kSharedColumns * kRowBytes % 1024 == 0, "whole swizzles for each block of a cluster");
static_assert(kGroupRows % 64 == 0 && kGroupColumns % 16 == 0, "whole instructions");
static_assert(kBytesOfA % 1024 == 0 && kGroupColumns * kRowBytes % 1024 == 0, "whole swizzles");
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * kStartRegisters,
              "a block hands over registers of its own; asking for more waits for ever");

// Where the ring stands; the parity is that of the phase which ends next.
struct Ring {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ void skip(int stages) {
        const int at = stage + stages;
        stage = at % STAGES;
        parity ^= at / STAGES % 2;
    }
};

// What a block does at a time: blocks `begin` to `end` of the depth of one tile.
struct Piece {
    int tile, split, row, column, begin, end;
};

// Tiles in bands of kBand rows of them, column after column; the splits of a tile one after another.
// A cluster takes CLUSTER tiles of a column together; the last rows of tiles may be empty then.
struct Tiles {
    int rows, across, splits;
    int blocks, split_blocks;  // of the depth, and of all its splits but the last
    float* partial;     // [tiles, splits, sums of a thread, threads], or null for one split
    unsigned* arrived;  // [tiles], zero before and after

    __device__ __forceinline__ int down() const { return (rows + CLUSTER - 1) / CLUSTER; }
    __device__ __forceinline__ int count() const { return down() * across * splits; }
    __device__ __forceinline__ Piece find(int index) const {
        const int tile = index / splits, split = index % splits;
        const int band = tile / (kBand * across), in_band = tile % (kBand * across);
        const int rest = down() - band * kBand, high = rest < kBand ? rest : kBand;
        const int begin = split * split_blocks;
        const int end = blocks - begin < split_blocks ? blocks : begin + split_blocks;
        const int rank = blockIdx.x % CLUSTER;
        return {tile * CLUSTER + rank,
                split,
                (band * kBand + in_band % high) * CLUSTER + rank,
                in_band / high,
                begin,
                end};
    }
};

// A number that another block wrote: not from this multiprocessor's own cache.
__device__ __forceinline__ float load_fresh(const float* from) {
#ifdef __CUDACC__
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
    return value;
#else
    return *from;
#endif
}

// Leaves this split's sums and, where it is the last of its tile, takes all together; false for the
// others, which have nothing to store. `words` are four bytes of shared memory for each owner.
__device__ __forceinline__ bool join_splits(const Tiles& tiles, const Piece& piece,
                                            float (&sums)[kStrips][kGroupColumns / 2], int* words) {
    const int group = threadIdx.x / kWarpgroup, splits = tiles.splits;
    const int thread = APART ? threadIdx.x % kWarpgroup : threadIdx.x - kWarpgroup;
    const int together = APART ? 2 + group : 3;  // a named barrier
    int* const word = words + (APART ? group - 1 : 0);
    const long long size = TILE_ROWS * TILE_COLUMNS;
    float* const all = tiles.partial + (long long)piece.tile * splits * size + thread;
    float* const own = all + piece.split * size;
#pragma unroll
    for (int i = 0; i < kStrips; i++)
#pragma unroll
        for (int j = 0; j < kGroupColumns / 2; j++)
            own[(i * (kGroupColumns / 2) + j) * kOwners] = sums[i][j];
    __threadfence();
    group_barrier(together, kOwners);
    if (thread == 0)
        *word = atomicInc(tiles.arrived + piece.tile, splits - 1) == unsigned(splits - 1);
    group_barrier(together, kOwners);
    if (!*word) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < kStrips; i++)
#pragma unroll
        for (int j = 0; j < kGroupColumns / 2; j++) sums[i][j] = 0;
    const float* from = all;
#pragma unroll 1
    for (int split = 0; split < splits; split++, from += size)
#pragma unroll
        for (int i = 0; i < kStrips; i++)
#pragma unroll
            for (int j = 0; j < kGroupColumns / 2; j++)
                sums[i][j] += load_fresh(from + (i * (kGroupColumns / 2) + j) * kOwners);
    return true;
}

// A warp is done with a stage, here and, in a cluster, in the other block, which fills half of it.
__device__ __forceinline__ void give_back(Barrier* empty) {
    const int lane = threadIdx.x % 32;
    if (CLUSTER == 1 && lane == 0) barrier_arrive(empty);
    if (CLUSTER > 1 && lane < CLUSTER) barrier_arrive_at(empty, lane);
}

// `source.begin(tile_row, block)` is a Walk along the blocks of the depth, which `next` takes on.
// `source.load(to, barrier, walk)` asks for its block of A; `source.weight_at(walk)` is where
// the same block begins in a row of W, the same for the tiles of a cluster. `source.row(tile_row, r)` is
// the row of the output that row r of a tile is, or -1.
template <class Source>
__device__ __forceinline__ void multiply_tiles(const Source& source, const TensorMap& weight,
                                               const Epilogue& with, const Tiles& tiles) {
    DYNAMIC_SHARED(memory);
    Barrier* const full = reinterpret_cast<Barrier*>(memory + STAGES * kStageBytes);
    Barrier* const empty = full + STAGES;
    int* const words = reinterpret_cast<int*>(empty + STAGES);
    const int group = threadIdx.x / kWarpgroup;
    const int first_index = blockIdx.x / CLUSTER, indices = gridDim.x / CLUSTER;
    if (threadIdx.x == 0) {
        require_aligned(memory);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_begin(full + stage, 1);
            barrier_begin(empty + stage, kOwnerWarps * CLUSTER);
        }
        publish_barriers();
        source.prefetch();
        prefetch_map(weight);
    }
    if (CLUSTER > 1)
        cluster_barrier();  // Nobody reaches into a block whose barriers have not begun.
    else
        __syncthreads();
    wait_for_predecessor();

    if (group == 0) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) {
            Ring ring{0, 0};
            for (int index = first_index; index < tiles.count(); index += indices) {
                const Piece piece = tiles.find(index);
                typename Source::Walk at = source.begin(piece.row, piece.begin);
                for (int block = piece.begin; block < piece.end; block++, ring.next()) {
                    unsigned char* const stage = memory + ring.stage * kStageBytes;
                    // The first time round nothing has to be emptied: such a wait goes on at once.
                    barrier_wait(empty + ring.stage, ring.parity ^ 1);
                    barrier_expect(full + ring.stage, kStageBytes);
                    source.load(stage, full + ring.stage, at);
                    const int k = source.weight_at(at), column = piece.column * TILE_COLUMNS;
                    if (CLUSTER > 1) {
                        const int shared = blockIdx.x % CLUSTER * kSharedColumns;
                        share_tile(stage + kBytesOfA + shared * kRowBytes, weight,
                                   full + ring.stage, (1 << CLUSTER) - 1, k, column + shared);
                    } else {
                        load_tile(stage + kBytesOfA, weight, full + ring.stage, k, column);
                    }
                    source.next(at);
                }
            }
            release_successor();
        }
    } else {
        grow_registers<kConsumerRegisters>();
        const int consumer = group - 1, lane = threadIdx.x % 32;
        const int first_row = !APART && GROUPS_DOWN == 2 ? consumer * kGroupRows : 0;
        const int first_column = !APART && GROUPS_DOWN == 1 ? consumer * kGroupColumns : 0;
        const int own_turn = group, other_turn = 3 - group;  // named barriers
        const unsigned start = window_address(memory);
        const Descriptor a = rows_of_128(start + first_row * kRowBytes);
        const Descriptor w = rows_of_128(start + kBytesOfA + first_column * kRowBytes);
        Ring ring{0, 0};
        int turn = 0;  // of which warpgroup
        if (APART && consumer == 1) group_arrive(other_turn, kConsumers);  // the first one's first
        for (int index = first_index; index < tiles.count(); index += indices, turn ^= 1) {
            const Piece piece = tiles.find(index);
            if (APART && turn != consumer) {
                ring.skip(piece.end - piece.begin);
                continue;
            }
            if (APART) group_barrier(own_turn, kConsumers);
            float sums[kStrips][kGroupColumns / 2];
            int last = 0;
            for (int block = piece.begin; block < piece.end; block++, ring.next()) {
                barrier_wait(full + ring.stage, ring.parity);
#pragma unroll
                for (int i = 0; i < kStrips; i++) settle(sums[i]);
                wgmma_fence();
                const Descriptor at = ring.stage * kStageBytes / 16;
#pragma unroll
                for (int step = 0; step < kDepth / 16; step++)
#pragma unroll
                    for (int i = 0; i < kStrips; i++)
                        wgmma<ELEMENT, kGroupColumns>(
                            sums[i], a + at + (i * 64 * kRowBytes + step * 32) / 16,
                            w + at + step * 32 / 16, step > 0 || block > piece.begin);
                wgmma_commit();
                // The products of the block before are done: its stage may be filled again.
                wgmma_wait<1>();
                if (block > piece.begin) give_back(empty + last);
                last = ring.stage;
            }
            if (APART && index + indices < tiles.count()) group_arrive(other_turn, kConsumers);
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < kStrips; i++) settle(sums[i]);
            give_back(empty + last);
            if (tiles.splits > 1 && !join_splits(tiles, piece, sums, words))
                continue;
#pragma unroll
            for (int i = 0; i < kStrips; i++) {
                const int r = first_row + i * 64 + threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
                const int rows[2] = {source.row(piece.row, r), source.row(piece.row, r + 8)};
                const int from = piece.column * TILE_COLUMNS + first_column;
#if GEGLU
                finish_geglu<kGroupColumns>(with, sums[i], rows, from);
#else
                finish<kGroupColumns>(with, sums[i], rows, from);
#endif
            }
        }
    }
    // The other block may still arrive here.
    if (CLUSTER > 1) leave_cluster();
}
