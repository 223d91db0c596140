// A convolution over NHWC on sm_90a, stride 1, as a product: a row is a pixel of the output, the depth
// runs over the filter's pixels (taps) and their channels.
//
// The rows of a tile are a box of pixels. For each tap TMA brings the box moved by that tap, 64
// channels at a time; what lies outside the image comes as zeros, which is the padding. Where the
// source is enlarged to twice its size (`doubled` 1), each of the four parities of an output's pixel
// has a 2x2 filter of its own, and the pixels of a tile are of one parity. So are those of a cluster,
// whose blocks share the weight: behind the last image of a parity comes an empty box if need be.
#include "kernel.h"

#include "product_sm90.h"

struct Pixels {
    const TensorMap &first, &second;
    int channels, first_channels;
    int box_width, box_height, boxes_across, boxes_down;  // of one image, and one parity if enlarged
    int output_height, output_width;
    int kernel_width, taps, top, left, doubled, images;

    __device__ __forceinline__ int first_blocks() const {
        return (first_channels + kDepth - 1) / kDepth;
    }
    __device__ __forceinline__ int tap_blocks() const {
        return first_blocks() + (channels - first_channels + kDepth - 1) / kDepth;
    }
    __device__ __forceinline__ void prefetch() const {
        prefetch_map(first);
        if (first_channels < channels) prefetch_map(second);
    }

    // Rows of tiles of one parity, of all images.
    __device__ __forceinline__ int part_tiles() const {
        return (images * boxes_down * boxes_across + CLUSTER - 1) / CLUSTER * CLUSTER;
    }
    __device__ __forceinline__ int tiles_down() const { return part_tiles() << 2 * doubled; }

    struct Box {
        int x, y, odd_x, odd_y, image;
    };
    __device__ __forceinline__ Box box(int tile_row) const {
        const int parity = tile_row / part_tiles(), in_part = tile_row % part_tiles();
        const int in_row = in_part / boxes_across;
        return {in_part % boxes_across * box_width, in_row % boxes_down * box_height, parity % 2,
                parity / 2, in_row / boxes_down};
    }
    // Where in the source and in a row of the weight a block of the depth lies.
    struct Walk {
        int x, y, image, tap_x;
        int tap_at, block;  // where the tap begins in the weight, and which block of the tap it is
    };
    __device__ __forceinline__ Walk begin(int tile_row, int block) const {
        const Box at = box(tile_row);
        const int tap = block / tap_blocks(), tap_x = tap % kernel_width;
        return {at.x + at.odd_x + tap_x - left,
                at.y + at.odd_y + tap / kernel_width - top,
                at.image,
                tap_x,
                ((at.odd_y * 2 + at.odd_x) * taps + tap) * channels,
                block % tap_blocks()};
    }
    __device__ __forceinline__ void load(void* to, Barrier* barrier, const Walk& at) const {
        const int in_second = at.block - first_blocks();
        if (in_second < 0)
            load_tile(to, first, barrier, at.block * kDepth, at.x, at.y, at.image);
        else
            load_tile(to, second, barrier, in_second * kDepth, at.x, at.y, at.image);
    }
    __device__ __forceinline__ int weight_at(const Walk& at) const {
        const int in_second = at.block - first_blocks();
        return at.tap_at + (in_second < 0 ? at.block * kDepth : first_channels + in_second * kDepth);
    }
    __device__ __forceinline__ void next(Walk& at) const {
        if (++at.block < tap_blocks()) return;
        at.block = 0;
        at.tap_at += channels;
        at.x++;
        if (++at.tap_x < kernel_width) return;
        at.tap_x = 0;
        at.x -= kernel_width;
        at.y++;
    }
    __device__ __forceinline__ int row(int tile_row, int r) const {
        const Box at = box(tile_row);
        const int x = ((at.x + r % box_width) << doubled) + at.odd_x;
        const int y = ((at.y + r / box_width) << doubled) + at.odd_y;
        const bool there = x < output_width && y < output_height && at.image < images;
        return there ? (at.image * output_height + y) * output_width + x : -1;
    }
};

// grid: at most one block for each multiprocessor; boxes of the maps: 64 by box_width by box_height
// by 1 of the sources [images, height, width, channels], 64 by TILE_COLUMNS / CLUSTER of the weight
// [columns, taps channels], or [columns, 4 taps channels] if doubled
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv_sm90(TENSOR_MAP(first), TENSOR_MAP(second), TENSOR_MAP(weight), const ELEMENT* bias,
              const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
              unsigned* arrived, int images, int columns, int channels, int first_channels,
              int box_width, int box_height, int boxes_across, int boxes_down, int output_height, int output_width,
              int kernel_width, int taps, int top, int left, int doubled, int vector_stride,
              int residual_stride, int output_stride, int splits, int blocks, int split_blocks) {
    const Pixels source{first,        second,       channels,   first_channels, box_width, box_height,
                        boxes_across, boxes_down,   output_height, output_width, kernel_width,
                        taps,         top,          left,       doubled,        images};
    const Epilogue with{bias,
                        vector,
                        residual,
                        output,
                        columns,
                        output_height * output_width,
                        vector_stride,
                        residual_stride,
                        output_stride};
    const Tiles tiles{source.tiles_down(),
                      (columns + TILE_COLUMNS - 1) / TILE_COLUMNS,
                      splits,
                      blocks,
                      split_blocks,
                      partial,
                      arrived};
    multiply_tiles(source, weight, with, tiles);
}
HOST_KERNEL(conv_sm90)
