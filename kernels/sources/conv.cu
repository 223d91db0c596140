// A convolution over NHWC as a product: a row of A is the window of one pixel of the output, which is
// never written down. Its pixels lie in one source, or side by side in two.
//
// A source may be enlarged while it is read (`shift` 1). Where it is enlarged to exactly twice its size
// and the filter is 3x3, each of the four parities of an output's pixel has a 2x2 filter of its own,
// which reads the source as it lies (`doubled` 1): the rows of a parity follow one another, and no
// tile has rows of two.
#include "kernel.h"
#include "gemm_tile.h"

struct Windows {
    const ELEMENT *first, *second;
    int rows, depth, channels, first_channels, first_stride, second_stride;
    int height, width, seen_height, seen_width, output_width, kernel_width;
    int stride, top, left, shift, doubled, image_rows;

    int parity;                            // of the tile's pixels: 2 odd_y + odd_x
    int image[kLoadsOfA];                  // the number of an image's first pixel
    int window_y[kLoadsOfA], window_x[kLoadsOfA];  // the window's corner, which padding may hold
    int channel, tap_y, tap_x;             // where in its window this thread's chunk lies

    // Of one parity, or of all pixels where there is but one filter.
    __device__ __forceinline__ int part_rows() const { return rows >> 2 * doubled; }
    __device__ __forceinline__ int part_tiles() const {
        return (part_rows() + TILE_ROWS - 1) / TILE_ROWS;
    }
    __device__ __forceinline__ int tiles_down() const { return part_tiles() << 2 * doubled; }

    __device__ __forceinline__ int begin_tile(int tile_row) {
        parity = tile_row / part_tiles();
        return tile_row % part_tiles() * TILE_ROWS;
    }
    __device__ __forceinline__ int weight_at() const { return parity * depth; }
    __device__ __forceinline__ int output_row(int row) const {
        if (row >= part_rows()) return -1;
        if (!doubled) return row;
        // Of (y, x) it is 4 y across + 2 x: lines of the output are twice as many and as long.
        const int x = row % (output_width / 2);
        return 4 * row - 2 * x + parity / 2 * output_width + parity % 2;
    }
    __device__ __forceinline__ void begin(int row, int k) {
        channel = k % channels;
        tap_y = k / channels / kernel_width;
        tap_x = k / channels % kernel_width;
#pragma unroll
        for (int i = 0; i < kLoadsOfA; i++) {
            const int at = row + i * kRowsAtOnce;
            const int image_part = image_rows >> 2 * doubled, across = output_width >> doubled;
            const int pixel = at % image_part;
            image[i] = at / image_part * height * width;
            // A row past the last has its window far outside.
            window_y[i] = at < part_rows() ? pixel / across * stride + parity / 2 - top : -(1 << 30);
            window_x[i] = pixel % across * stride + parity % 2 - left;
        }
    }
    __device__ __forceinline__ void copy(SharedAddress to, int i, bool inside) const {
        const int y = window_y[i] + tap_y, x = window_x[i] + tap_x;
        inside = inside && unsigned(y) < unsigned(seen_height) && unsigned(x) < unsigned(seen_width);
        const bool in_first = channel < first_channels;
        const ELEMENT* from = in_first ? first + channel : second + (channel - first_channels);
        const int pixel = inside ? image[i] + (y >> shift) * width + (x >> shift) : 0;
        copy_async(to, from + (long long)pixel * (in_first ? first_stride : second_stride), inside);
    }
    __device__ __forceinline__ void next() {
        for (channel += kDepth; channel >= channels; channel -= channels)
            if (++tap_x == kernel_width) {
                tap_x = 0;
                tap_y++;
            }
    }
};

// grid (tiles, splits); first [images, height, width, first_channels] and second the other channels,
// with the strides of their pixels; weight [columns, kernel_height, kernel_width, channels], or
// [columns, 4, 2, 2, channels] if doubled; rows are the pixels of all images' outputs, image_rows those
// of one; depth is that of one filter
extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    conv(const ELEMENT* first, const ELEMENT* second, const ELEMENT* weight, const ELEMENT* bias,
         const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
         unsigned* arrived, int rows, int columns, int depth, int channels, int first_channels,
         int first_stride, int second_stride, int height, int width, int seen_height,
         int seen_width, int output_width, int kernel_width, int stride, int top, int left,
         int shift, int doubled, int image_rows, int vector_stride, int residual_stride,
         int output_stride, int activation, int split_depth) {
    Windows source;
    source.first = first, source.second = second;
    source.rows = rows, source.depth = depth;
    source.channels = channels, source.first_channels = first_channels;
    source.first_stride = first_stride, source.second_stride = second_stride;
    source.height = height, source.width = width;
    source.seen_height = seen_height, source.seen_width = seen_width;
    source.output_width = output_width, source.kernel_width = kernel_width;
    source.stride = stride, source.top = top, source.left = left;
    source.shift = shift, source.doubled = doubled;
    source.image_rows = image_rows;
    const Epilogue with{bias,       vector,        residual,        output,
                        image_rows, vector_stride, residual_stride, output_stride,
                        activation};
    multiply_tile(source, weight, with, partial, arrived, rows, columns, depth,
                  depth << 2 * doubled, split_depth);
}
HOST_KERNEL(conv)
