// Y = epilogue(A W^T) on sm_90a: rows of A lie in one source, or in two side by side.
#include "kernel.h"

#include "product_sm90.h"

struct Rows {
    const TensorMap &first, &second;
    int rows, first_depth, depth;

    // A source of which the last block is not full ends in zeros.
    __device__ __forceinline__ int first_blocks() const { return (first_depth + kDepth - 1) / kDepth; }
    __device__ __forceinline__ void prefetch() const {
        prefetch_map(first);
        if (first_depth < depth) prefetch_map(second);
    }
    struct Walk {
        int row, block;
    };
    __device__ __forceinline__ Walk begin(int tile_row, int block) const {
        return {tile_row * TILE_ROWS, block};
    }
    __device__ __forceinline__ void load(void* to, Barrier* barrier, const Walk& at) const {
        const int in_second = at.block - first_blocks();
        if (in_second < 0)
            load_tile(to, first, barrier, at.block * kDepth, at.row);
        else
            load_tile(to, second, barrier, in_second * kDepth, at.row);
    }
    __device__ __forceinline__ int weight_at(const Walk& at) const {
        const int in_second = at.block - first_blocks();
        return in_second < 0 ? at.block * kDepth : first_depth + in_second * kDepth;
    }
    __device__ __forceinline__ void next(Walk& at) const { at.block++; }
    __device__ __forceinline__ int row(int tile_row, int r) const {
        const int row = tile_row * TILE_ROWS + r;
        return row < rows ? row : -1;
    }
};

// grid: at most one block for each multiprocessor; boxes of the maps: 64 by TILE_ROWS of the
// sources, 64 by TILE_COLUMNS / CLUSTER of the weight [columns, depth]
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    gemm_sm90(TENSOR_MAP(first), TENSOR_MAP(second), TENSOR_MAP(weight), const ELEMENT* bias,
              const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
              unsigned* arrived, int rows, int columns, int depth, int first_depth, int image_rows,
              int vector_stride, int residual_stride, int output_stride, int splits, int blocks,
              int split_blocks) {
    const Rows source{first, second, rows, first_depth, depth};
    const Epilogue with{bias,    vector,     residual,      output,
                        columns, image_rows, vector_stride, residual_stride,
                        output_stride};
    const Tiles tiles{(rows + TILE_ROWS - 1) / TILE_ROWS,
                      (columns + TILE_COLUMNS - 1) / TILE_COLUMNS,
                      splits,
                      blocks,
                      split_blocks,
                      partial,
                      arrived};
    multiply_tiles(source, weight, with, tiles);
}
HOST_KERNEL(gemm_sm90)
