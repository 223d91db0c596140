// Y = epilogue(A W^T): rows of A lie in one source, or in two side by side.
#include "kernel.h"
#include "gemm_tile.h"

struct Rows {
    const ELEMENT *first, *second;
    int rows, first_depth, first_stride, second_stride;
    int row, k;

    __device__ __forceinline__ int tiles_down() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    __device__ __forceinline__ int begin_tile(int tile_row) { return tile_row * TILE_ROWS; }
    __device__ __forceinline__ int weight_at() const { return 0; }
    __device__ __forceinline__ int output_row(int row) const { return row < rows ? row : -1; }
    __device__ __forceinline__ void begin(int row_, int k_) {
        row = row_;
        k = k_;
    }
    __device__ __forceinline__ void copy(SharedAddress to, int i, bool inside) const {
        const bool in_first = k < first_depth;
        const ELEMENT* from = in_first ? first + k : second + (k - first_depth);
        const int stride = in_first ? first_stride : second_stride;
        const int at = row + i * kRowsAtOnce;
        copy_async(to, from + (long long)at * stride, inside && at < rows);
    }
    __device__ __forceinline__ void next() { k += kDepth; }
};

// grid (tiles, splits); first [rows, first_depth] and second [rows, depth - first_depth], with their
// strides; weight [columns, depth]; partial [splits, rows, columns] and arrived [tiles], which is 0,
// only where there are splits
extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    gemm(const ELEMENT* first, const ELEMENT* second, const ELEMENT* weight, const ELEMENT* bias,
         const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
         unsigned* arrived, int rows, int columns, int depth, int first_depth, int first_stride,
         int second_stride, int image_rows, int vector_stride, int residual_stride,
         int output_stride, int activation, int split_depth) {
    Rows source{first, second, rows, first_depth, first_stride, second_stride, 0, 0};
    const Epilogue with{bias,       vector,        residual,        output,
                        image_rows, vector_stride, residual_stride, output_stride,
                        activation};
    multiply_tile(source, weight, with, partial, arrived, rows, columns, depth, depth, split_depth);
}
HOST_KERNEL(gemm)
