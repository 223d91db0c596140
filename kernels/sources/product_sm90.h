// A persistent block of a product, for gemm_sm90.cu and conv_sm90.cu, which say how rows of A are
// found: Y = epilogue(A W^T), float32 sums.
//
// Three warpgroups. One thread of the first asks TMA for blocks of 64 along the depth, of A and of
// W, into a ring of STAGES; the other two multiply by wgmma, each its part of the tile, and store.
// A stage's `full` barrier ends a phase when all its bytes are there, its `empty` barrier when the
// eight warps of both multiplying warpgroups are done with it. The ring goes on from tile to tile, so
// that while one tile is stored the next one's first blocks already come.
//
// Constants: ELEMENT, TILE_ROWS, TILE_COLUMNS, STAGES, GEGLU (0 or 1), and GROUPS_DOWN: 2 where the
// two warpgroups share the rows of a tile, 1 where they share its columns.
#pragma once
#include "epilogue_sm90.h"
#include "hopper.h"

enum {
    kDepth = 64,  // elements of a stage along the depth: 128 bytes, what a swizzle spans
    kRowBytes = 128,
    kWarpgroup = 128,
    kThreads = 3 * kWarpgroup,
    kConsumerWarps = 8,
    kGroupRows = TILE_ROWS / GROUPS_DOWN,
    kGroupColumns = TILE_COLUMNS * GROUPS_DOWN / 2,
    kStrips = kGroupRows / 64,  // wgmma has 64 rows
    kBytesOfA = TILE_ROWS * kRowBytes,
    kBytesOfW = TILE_COLUMNS * kRowBytes,
    kStageBytes = kBytesOfA + kBytesOfW,
    kProducerRegisters = 40,
    kConsumerRegisters = 232,
    kBand = 16,  // rows of tiles that are done together, for the sake of L2
};
static_assert(kGroupRows % 64 == 0 && kGroupColumns % 16 == 0, "whole instructions");
static_assert(kBytesOfA % 1024 == 0 && kGroupColumns * kRowBytes % 1024 == 0, "whole swizzles");
static_assert(kWarpgroup * (kProducerRegisters + 2 * kConsumerRegisters) <= 65536,
              "registers of a multiprocessor");

// Where the ring stands; the parity is that of the phase which ends next.
struct Ring {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Tiles in bands of kBand rows of them, column after column.
struct Tiles {
    int down, across;
    __device__ __forceinline__ int count() const { return down * across; }
    __device__ __forceinline__ void find(int tile, int& row, int& column) const {
        const int band = tile / (kBand * across), in_band = tile % (kBand * across);
        const int rows = down - band * kBand < kBand ? down - band * kBand : kBand;
        row = band * kBand + in_band % rows;
        column = in_band / rows;
    }
};

// `source.blocks()` of the depth; `source.load(to, barrier, tile_row, block)` asks for a block of A;
// `source.weight_at(block)` is where the same block begins in a row of W; `source.row(tile_row, r)`
// is the row of the output that row r of a tile is, or -1.
template <class Source>
__device__ __forceinline__ void multiply_tiles(const Source& source, const TensorMap& weight,
                                               const Epilogue& with, const Tiles& tiles) {
    DYNAMIC_SHARED(memory);
    Barrier* const full = reinterpret_cast<Barrier*>(memory + STAGES * kStageBytes);
    Barrier* const empty = full + STAGES;
    const int group = threadIdx.x / kWarpgroup, blocks = source.blocks();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_begin(full + stage, 1);
            barrier_begin(empty + stage, kConsumerWarps);
        }
        publish_barriers();
        source.prefetch();
        prefetch_map(weight);
    }
    __syncthreads();
    wait_for_predecessor();

    if (group == 0) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) {
            Ring ring{0, 0};
            for (int tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
                int row, column;
                tiles.find(tile, row, column);
                for (int block = 0; block < blocks; block++, ring.next()) {
                    unsigned char* const stage = memory + ring.stage * kStageBytes;
                    // The first time round nothing has to be emptied: such a wait goes on at once.
                    barrier_wait(empty + ring.stage, ring.parity ^ 1);
                    barrier_expect(full + ring.stage, kStageBytes);
                    source.load(stage, full + ring.stage, row, block);
                    load_tile(stage + kBytesOfA, weight, full + ring.stage, source.weight_at(block),
                              column * TILE_COLUMNS);
                }
            }
            release_successor();
        }
    } else {
        grow_registers<kConsumerRegisters>();
        const int consumer = group - 1, lane = threadIdx.x % 32;
        const int first_row = GROUPS_DOWN == 2 ? consumer * kGroupRows : 0;
        const int first_column = GROUPS_DOWN == 2 ? 0 : consumer * kGroupColumns;
        const unsigned start = window_address(memory);
        const Descriptor a = rows_of_128(start + first_row * kRowBytes);
        const Descriptor w = rows_of_128(start + kBytesOfA + first_column * kRowBytes);
        Ring ring{0, 0};
        for (int tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
            int row, column;
            tiles.find(tile, row, column);
            float sums[kStrips][kGroupColumns / 2];
            int last = 0;
            for (int block = 0; block < blocks; block++, ring.next()) {
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
                            w + at + step * 32 / 16, step > 0 || block > 0);
                wgmma_commit();
                // The products of the block before are done: its stage may be filled again.
                wgmma_wait<1>();
                if (block > 0 && lane == 0) barrier_arrive(empty + last);
                last = ring.stage;
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < kStrips; i++) settle(sums[i]);
            if (lane == 0) barrier_arrive(empty + last);
#pragma unroll
            for (int i = 0; i < kStrips; i++) {
                const int r = first_row + i * 64 + threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
                const int rows[2] = {source.row(row, r), source.row(row, r + 8)};
                const int from = column * TILE_COLUMNS + first_column;
#if GEGLU
                finish_geglu<kGroupColumns>(with, sums[i], rows, from);
#else
                finish<kGroupColumns>(with, sums[i], rows, from);
#endif
            }
        }
    }
}
