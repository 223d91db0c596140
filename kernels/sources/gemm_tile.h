// One block's tile of a product, for gemm.cu and conv.cu, which say how rows of A are found.
//
// Both factors come by cp.async through a ring of STAGES blocks of the depth. A row of a block is 64
// bytes, four chunks of 16; chunk c of row r lies at c ^ (r / 2 % 4), so that eight rows of one chunk
// fill all banks once, for ldmatrix and for the plain loads of float32 alike. Sums stay in registers,
// leave through a strip of shared memory of each warp, 16 rows at a time, and are finished in whole
// vectors of eight.
//
// The depth may be split among blockIdx.y: each split leaves its sums in `partial`, and the last of
// a tile adds them in the order of the splits, so that every run gives the same bits.
#pragma once
#include "activation.h"
#include "fresh.h"
#include "mma.h"
#include "vector.h"

enum {
    kLanes = 32,
    kThreads = WARPS_DOWN * WARPS_ACROSS * kLanes,
    kChunkBytes = 16,
    kChunk = kChunkBytes / sizeof(ELEMENT),  // elements
    kRowChunks = 4,
    kRowBytes = kRowChunks * kChunkBytes,
    kDepth = kRowChunks * kChunk,  // of a block of the depth
    kRowsAtOnce = kThreads / kRowChunks,  // that all threads copy together
    kLoadsOfA = (TILE_ROWS + kRowsAtOnce - 1) / kRowsAtOnce,
    kLoadsOfW = (TILE_COLUMNS + kRowsAtOnce - 1) / kRowsAtOnce,
    kStageBytes = (TILE_ROWS + TILE_COLUMNS) * kRowBytes,
    kWarpRows = TILE_ROWS / WARPS_DOWN,
    kWarpColumns = TILE_COLUMNS / WARPS_ACROSS,
    kStripRows = 16,
    kStripWidth = kWarpColumns + 8,  // so that rows begin in different banks
    kBand = 8,  // rows of tiles that are done together, for the sake of L2
};
static_assert(TILE_ROWS % kRowsAtOnce == 0, "whole rows of copies");
static_assert(kWarpRows % kStripRows == 0 && kWarpColumns % 16 == 0, "whole instructions of a warp");
static_assert(WARPS_DOWN * WARPS_ACROSS * kStripRows * kStripWidth * 4 <= STAGES * kStageBytes,
              "the strips lie where the ring was");

enum Activation { kNone, kGelu, kQuickGelu, kSilu, kGeglu };  // as ACTIVATIONS of epilogue.py

struct Epilogue {
    const ELEMENT* bias;      // [columns] or null
    const ELEMENT* vector;    // [images, columns] or null
    const ELEMENT* residual;  // as the output, or null
    ELEMENT* output;          // [rows, columns], or half as many columns
    int image_rows, vector_stride, residual_stride, output_stride, activation;
};

__device__ __forceinline__ void add(float (&x)[kVector], const ELEMENT* from) {
    const Vector<ELEMENT> loaded = *reinterpret_cast<const Vector<ELEMENT>*>(from);
#pragma unroll
    for (int i = 0; i < kVector; i++) x[i] += to_float(loaded.values[i]);
}

// Eight sums of a row, from `column` on, and with geglu the eight gates that follow them.
__device__ __forceinline__ void finish(const Epilogue& with, int row, int column,
                                       float (&x)[kVector], float (&gates)[kVector]) {
    if (with.bias) add(x, with.bias + column);
    if (with.vector)
        add(x, with.vector + (long long)(row / with.image_rows) * with.vector_stride + column);
    if (with.activation == kGeglu) {
        if (with.bias) add(gates, with.bias + column + kVector);
#pragma unroll
        for (int i = 0; i < kVector; i++) x[i] *= gelu(gates[i]);
        column /= 2;
    } else if (with.activation == kGelu) {
#pragma unroll
        for (int i = 0; i < kVector; i++) x[i] = gelu(x[i]);
    } else if (with.activation == kQuickGelu) {
#pragma unroll
        for (int i = 0; i < kVector; i++) x[i] = quick_gelu(x[i]);
    } else if (with.activation == kSilu) {
#pragma unroll
        for (int i = 0; i < kVector; i++) x[i] = silu(x[i]);
    }
    if (with.residual)
        add(x, with.residual + (long long)row * with.residual_stride + column);
    Vector<ELEMENT> out;
#pragma unroll
    for (int i = 0; i < kVector; i++) store(out.values + i, x[i]);
    *reinterpret_cast<Vector<ELEMENT>*>(with.output + (long long)row * with.output_stride + column) =
        out;
}

__device__ __forceinline__ Four load_four(SharedAddress from) {
#ifdef __CUDACC__
    Four four;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(four.values[0]), "=f"(four.values[1]), "=f"(four.values[2]),
                   "=f"(four.values[3])
                 : "r"(from)
                 : "memory");
    return four;
#else
    return *reinterpret_cast<const Four*>(from);
#endif
}

// x += sums in memory
template <class Load>
__device__ __forceinline__ void add_sums(float (&x)[kVector], const float* from, Load load) {
    const Four* fours = reinterpret_cast<const Four*>(from);
    const Four low = load(fours), high = load(fours + 1);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] += low.values[i];
        x[i + 4] += high.values[i];
    }
}

// Where a chunk of a row of a block lies.
__device__ __forceinline__ unsigned place(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (row / 2 % kRowChunks)) * kChunkBytes;
}

// A warp's sums. `multiply` adds one block of the depth; `to_strip` writes 16 rows of them.
template <class T>
struct Sums {
    enum { kTilesDown = kWarpRows / 16, kTilesAcross = kWarpColumns / 8, kSteps = kDepth / 16 };
    struct Fragments {
        unsigned a[kTilesDown][4], w[kTilesAcross / 2][4];  // w of two neighbouring tiles
    };
    float sums[kTilesDown][kTilesAcross][4];
    Fragments fragments[2];

    __device__ __forceinline__ void load(int which, SharedAddress a, SharedAddress w, int step) {
        const int lane = threadIdx.x % kLanes;
        const int row = lane % 16, half_of_a = lane / 16;
        const int column = lane % 8 + lane / 16 * 8, half_of_w = lane / 8 % 2;
#pragma unroll
        for (int i = 0; i < kTilesDown; i++)
            load_matrices(fragments[which].a[i], a + place(i * 16 + row, step * 2 + half_of_a));
#pragma unroll
        for (int j = 0; j < kTilesAcross / 2; j++)
            load_matrices(fragments[which].w[j], w + place(j * 16 + column, step * 2 + half_of_w));
    }
    // The first fragments of all, before the first block.
    __device__ __forceinline__ void begin(SharedAddress a, SharedAddress w) { load(0, a, w, 0); }
    // The last step of a block, before which the next one is waited for, loads that one's first
    // fragments: the tensor cores have work meanwhile.
    template <class Copy, class Wait>
    __device__ __forceinline__ void multiply(SharedAddress a, SharedAddress w, SharedAddress next_a,
                                             SharedAddress next_w, Copy copy, Wait wait) {
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
            if (step + 1 < kSteps) {
                load((step + 1) % 2, a, w, step + 1);
                if (step == 0) copy();
            } else {
                wait();
                load((step + 1) % 2, next_a, next_w, 0);
            }
            const Fragments& now = fragments[step % 2];
#pragma unroll
            for (int i = 0; i < kTilesDown; i++)
#pragma unroll
                for (int j = 0; j < kTilesAcross; j++)
                    multiply_add<T>(sums[i][j], now.a[i], now.w[j / 2][j % 2 * 2],
                                    now.w[j / 2][j % 2 * 2 + 1]);
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kTilesDown; i++)
#pragma unroll
            for (int j = 0; j < kTilesAcross; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) sums[i][j][k] = 0;
    }
    __device__ __forceinline__ void to_strip(int strip, float* to) const {
        const int lane = threadIdx.x % kLanes;
#pragma unroll
        for (int j = 0; j < kTilesAcross; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                to[(lane / 4 + k / 2 * 8) * kStripWidth + j * 8 + lane % 4 * 2 + k % 2] =
                    sums[strip][j][k];
    }
};

// float32: a thread has every eighth row and every fourth column of its warp's tile.
template <>
struct Sums<float> {
    enum { kRows = kWarpRows / 8, kColumns = kWarpColumns / 4 };
    float sums[kRows][kColumns];

    __device__ __forceinline__ void begin(SharedAddress, SharedAddress) {}
    template <class Copy, class Wait>
    __device__ __forceinline__ void multiply(SharedAddress a, SharedAddress w, SharedAddress,
                                             SharedAddress, Copy copy, Wait wait) {
        const int lane = threadIdx.x % kLanes;
        copy();
#pragma unroll 1
        for (int chunk = 0; chunk < kRowChunks; chunk++) {
            Four x[kRows];
#pragma unroll
            for (int i = 0; i < kRows; i++) x[i] = load_four(a + place(i * 8 + lane % 8, chunk));
#pragma unroll
            for (int j = 0; j < kColumns; j++) {
                const Four y = load_four(w + place(j * 4 + lane / 8, chunk));
#pragma unroll
                for (int i = 0; i < kRows; i++)
#pragma unroll
                    for (int k = 0; k < 4; k++) sums[i][j] += x[i].values[k] * y.values[k];
            }
        }
        wait();
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kRows; i++)
#pragma unroll
            for (int j = 0; j < kColumns; j++) sums[i][j] = 0;
    }
    __device__ __forceinline__ void to_strip(int strip, float* to) const {
        const int lane = threadIdx.x % kLanes;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < kColumns; j++)
                to[(lane % 8 + i * 8) * kStripWidth + lane / 8 + j * 4] = sums[strip * 2 + i][j];
    }
};

// `source` finds the rows of A. There are `tiles_down()` tiles of them; `begin_tile(tile_row)` gives the
// first row of one. begin(row, k) is for the first of this thread's chunks, `copy(to, i)` for the chunk
// i * kRowsAtOnce rows below, `next()` for the next block of the depth. `weight_at()` is where the
// tile's factors begin in a row of the weight, `output_row(row)` where a row is stored, or -1.
template <class Source>
__device__ __forceinline__ void multiply_tile(Source& source, const ELEMENT* weight,
                                              const Epilogue& with, float* partial,
                                              unsigned* arrived, int rows, int columns, int depth,
                                              int weight_stride, int split_depth) {
    release_successor();
    wait_for_predecessor();
    DYNAMIC_SHARED(memory);
    const SharedAddress ring = shared_address(memory);

    // Bands of kBand rows of tiles, column after column.
    const int down = source.tiles_down();
    const int across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int band = int(blockIdx.x) / (kBand * across), in_band = int(blockIdx.x) % (kBand * across);
    const int band_rows = down - band * kBand < kBand ? down - band * kBand : kBand;
    const int first_row = source.begin_tile(band * kBand + in_band % band_rows);
    const int first_column = in_band / band_rows * TILE_COLUMNS;

    const int begin = int(blockIdx.y) * split_depth;
    const int end = depth - begin < split_depth ? depth : begin + split_depth;
    const int blocks = (end - begin + kDepth - 1) / kDepth;

    const int own_row = threadIdx.x / kRowChunks, own_chunk = threadIdx.x % kRowChunks;
    const int first_k = begin + own_chunk * kChunk;
    const ELEMENT* w = weight + (long long)(first_column + own_row) * weight_stride +
                       source.weight_at() + first_k;
    source.begin(first_row + own_row, first_k);

    const auto copy = [&](int block) {
        if (block < blocks) {
            const SharedAddress stage = ring + block % STAGES * kStageBytes;
            const bool inside = first_k + block * kDepth < end;
#pragma unroll
            for (int i = 0; i < kLoadsOfA; i++)
                source.copy(stage + place(own_row + i * kRowsAtOnce, own_chunk), i, inside);
            source.next();
#pragma unroll
            for (int i = 0; i < kLoadsOfW; i++) {
                const int row = own_row + i * kRowsAtOnce;
                if (TILE_COLUMNS % kRowsAtOnce == 0 || row < TILE_COLUMNS)
                    copy_async(stage + place(TILE_ROWS + row, own_chunk),
                               w + (long long)(i * kRowsAtOnce) * weight_stride + block * kDepth,
                               first_column + row < columns && inside);
            }
        }
        commit_copies();
    };

    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const int warp_row = warp / WARPS_ACROSS * kWarpRows;
    const int warp_column = warp % WARPS_ACROSS * kWarpColumns;
    const unsigned own_a = place(warp_row, 0), own_w = place(TILE_ROWS + warp_column, 0);
    Sums<ELEMENT> sums;
    sums.clear();
    const auto wait = [] {
        wait_copies<STAGES - 2>();
        __syncthreads();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) copy(stage);
    wait();
    sums.begin(ring + own_a, ring + own_w);
    for (int block = 0; block < blocks; block++) {
        const SharedAddress stage = ring + block % STAGES * kStageBytes;
        const SharedAddress next = ring + (block + 1) % STAGES * kStageBytes;
        // What is copied goes where the block before this one was, which all have left.
        sums.multiply(
            stage + own_a, stage + own_w, next + own_a, next + own_w,
            [&] { copy(block + STAGES - 1); }, wait);
    }
    // The last wait came after all that is read of the ring, and no copy is under way.

    const bool split = gridDim.y > 1;
    const bool gated = with.activation == kGeglu;
    const int width = gated ? 2 * kVector : kVector;  // sums of one vector of results
    const int vectors = kWarpColumns / width;
    float* const strip = reinterpret_cast<float*>(memory) + warp * kStripRows * kStripWidth;
    const auto from_shared = [](const Four* from) { return *from; };
    const auto from_others = [](const Four* from) { return load_fresh(from); };
#pragma unroll 1
    for (int s = 0; s < kWarpRows / kStripRows; s++) {
#pragma unroll
        for (int i = 0; i < kWarpRows / kStripRows; i++)
            if (i == s) sums.to_strip(i, strip);
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < kStripRows * vectors; i += kLanes) {
            const int row = source.output_row(first_row + warp_row + s * kStripRows + i / vectors);
            const int column = first_column + warp_column + i % vectors * width;
            if (row < 0 || column >= columns) continue;
            const float* from = strip + i / vectors * kStripWidth + i % vectors * width;
            if (split) {
                float* to = partial + ((long long)blockIdx.y * rows + row) * columns + column;
                for (int j = 0; j < width; j += 4)
                    *reinterpret_cast<Four*>(to + j) = *reinterpret_cast<const Four*>(from + j);
            } else {
                float x[kVector] = {}, gates[kVector] = {};
                add_sums(x, from, from_shared);
                if (gated) add_sums(gates, from + kVector, from_shared);
                finish(with, row, column, x, gates);
            }
        }
        __syncwarp();
    }
    if (!split) return;

    __threadfence();
    __syncthreads();
    int* const last = reinterpret_cast<int*>(memory);
    if (threadIdx.x == 0) *last = atomicInc(arrived + blockIdx.x, gridDim.y - 1) == gridDim.y - 1;
    __syncthreads();
    if (!*last) return;
    __threadfence();
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE_ROWS * TILE_COLUMNS / width; i += kThreads) {
        const int row = source.output_row(first_row + i / (TILE_COLUMNS / width));
        const int column = first_column + i % (TILE_COLUMNS / width) * width;
        if (row < 0 || column >= columns) continue;
        float x[kVector] = {}, gates[kVector] = {};
        const float* from = partial + (long long)row * columns + column;
#pragma unroll 1
        for (int part = 0; part < int(gridDim.y); part++) {
            add_sums(x, from, from_others);
            if (gated) add_sums(gates, from + kVector, from_others);
            from += (long long)rows * columns;
        }
        finish(with, row, column, x, gates);
    }
}
