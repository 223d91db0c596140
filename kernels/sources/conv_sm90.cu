// A convolution over NHWC on sm_90a, stride 1, as a product: a row is a pixel of the output, the depth
// runs over the filter's pixels (taps) and their channels.
//
// The rows of a tile are a box of pixels. For each tap TMA brings the box moved by that tap, 64
// channels at a time; what lies outside the image comes as zeros, which is the padding. Where the
// source is enlarged by nearest neighbours (`shift` 1), the pixels of a tile are every second one of
// the output in both directions: those all read the source moved by the same number of pixels.
#include "kernel.h"

#include "product_sm90.h"

struct Pixels {
    const TensorMap &first, &second;
    int channels, first_channels;
    int box_width, box_height, boxes_across, boxes_down;  // of one image, and one parity if enlarged
    int output_height, output_width;
    int kernel_width, taps, top, left, shift, images;

    __device__ __forceinline__ int first_blocks() const {
        return (first_channels + kDepth - 1) / kDepth;
    }
    __device__ __forceinline__ int tap_blocks() const {
        return first_blocks() + (channels - first_channels + kDepth - 1) / kDepth;
    }
    __device__ __forceinline__ int blocks() const { return taps * tap_blocks(); }
    __device__ __forceinline__ void prefetch() const {
        prefetch_map(first);
        if (first_channels < channels) prefetch_map(second);
    }

    struct Box {
        int x, y, odd_x, odd_y, image;
    };
    __device__ __forceinline__ Box box(int tile_row) const {
        const int in_row = tile_row / boxes_across, in_image = in_row / boxes_down;
        const int parity = shift ? in_image % 4 : 0;
        return {tile_row % boxes_across * box_width, in_row % boxes_down * box_height, parity % 2,
                parity / 2, shift ? in_image / 4 : in_image};
    }
    __device__ __forceinline__ void load(void* to, Barrier* barrier, int tile_row, int block) const {
        const Box at = box(tile_row);
        const int tap = block / tap_blocks(), part = block % tap_blocks() - first_blocks();
        const int x = at.x + ((at.odd_x + tap % kernel_width - left) >> shift);
        const int y = at.y + ((at.odd_y + tap / kernel_width - top) >> shift);
        if (part < 0)
            load_tile(to, first, barrier, (part + first_blocks()) * kDepth, x, y, at.image);
        else
            load_tile(to, second, barrier, part * kDepth, x, y, at.image);
    }
    __device__ __forceinline__ int weight_at(int block) const {
        const int part = block % tap_blocks() - first_blocks();
        const int in_tap = part < 0 ? (part + first_blocks()) * kDepth : first_channels + part * kDepth;
        return block / tap_blocks() * channels + in_tap;
    }
    __device__ __forceinline__ int row(int tile_row, int r) const {
        const Box at = box(tile_row);
        const int x = ((at.x + r % box_width) << shift) + at.odd_x;
        const int y = ((at.y + r / box_width) << shift) + at.odd_y;
        const bool there = x < output_width && y < output_height && at.image < images;
        return there ? (at.image * output_height + y) * output_width + x : -1;
    }
};

// grid: at most one block for each multiprocessor; boxes of the maps: 64 by box_width by box_height
// by 1 of the sources [images, height, width, channels], 64 by TILE_COLUMNS / CLUSTER of the weight
// [columns, taps channels]
extern "C" __global__ void OF_CLUSTER __launch_bounds__(kThreads, 1)
    conv_sm90(TENSOR_MAP(first), TENSOR_MAP(second), TENSOR_MAP(weight), const ELEMENT* bias,
              const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
              unsigned* arrived, int images, int columns, int channels, int first_channels,
              int box_width, int box_height, int boxes_across, int boxes_down, int output_height, int output_width,
              int kernel_width, int taps, int top, int left, int shift, int vector_stride,
              int residual_stride, int output_stride, int splits) {
    const Pixels source{first,        second,       channels,   first_channels, box_width, box_height,
                        boxes_across, boxes_down,   output_height, output_width, kernel_width,
                        taps,         top,          left,       shift,          images};
    const Epilogue with{bias,
                        vector,
                        residual,
                        output,
                        columns,
                        output_height * output_width,
                        vector_stride,
                        residual_stride,
                        output_stride};
    const Tiles tiles{(shift ? 4 : 1) * images * boxes_down * boxes_across,
                      (columns + TILE_COLUMNS - 1) / TILE_COLUMNS, splits, partial, arrived};
    multiply_tiles(source, weight, with, tiles);
}
HOST_KERNEL(conv_sm90)
HOST_CLUSTER(CLUSTER)
