// A convolution over NHWC as a product: a row of A is the window of one pixel of the output, which is
// never written down. Its pixels lie in one source, or side by side in two.
#include "kernel.h"
#include "gemm_tile.h"

struct Windows {
    const ELEMENT *first, *second;
    int rows, channels, first_channels, first_stride, second_stride;
    int height, width, seen_height, seen_width, output_width, kernel_width;
    int stride, top, left, shift, image_rows;

    int image[kLoadsOfA];                  // the number of an image's first pixel
    int window_y[kLoadsOfA], window_x[kLoadsOfA];  // the window's corner, which padding may hold
    int channel, tap_y, tap_x;             // where in its window this thread's chunk lies

    __device__ __forceinline__ void begin(int row, int k) {
        channel = k % channels;
        tap_y = k / channels / kernel_width;
        tap_x = k / channels % kernel_width;
#pragma unroll
        for (int i = 0; i < kLoadsOfA; i++) {
            const int at = row + i * kRowsAtOnce, pixel = at % image_rows;
            image[i] = at / image_rows * height * width;
            // A row past the last has its window far outside.
            window_y[i] = at < rows ? pixel / output_width * stride - top : -(1 << 30);
            window_x[i] = pixel % output_width * stride - left;
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
// with the strides of their pixels; weight [columns, kernel_height, kernel_width, channels]; rows are
// the pixels of all images' outputs, image_rows those of one
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv(const ELEMENT* first, const ELEMENT* second, const ELEMENT* weight, const ELEMENT* bias,
         const ELEMENT* vector, const ELEMENT* residual, ELEMENT* output, float* partial,
         unsigned* arrived, int rows, int columns, int depth, int channels, int first_channels,
         int first_stride, int second_stride, int height, int width, int seen_height,
         int seen_width, int output_width, int kernel_width, int stride, int top, int left,
         int shift, int image_rows, int vector_stride, int residual_stride, int output_stride,
         int activation, int split_depth) {
    Windows source;
    source.first = first, source.second = second;
    source.rows = rows, source.channels = channels, source.first_channels = first_channels;
    source.first_stride = first_stride, source.second_stride = second_stride;
    source.height = height, source.width = width;
    source.seen_height = seen_height, source.seen_width = seen_width;
    source.output_width = output_width, source.kernel_width = kernel_width;
    source.stride = stride, source.top = top, source.left = left, source.shift = shift;
    source.image_rows = image_rows;
    const Epilogue with{bias,       vector,        residual,        output,
                        image_rows, vector_stride, residual_stride, output_stride,
                        activation};
    multiply_tile(source, weight, with, partial, arrived, rows, columns, depth, split_depth);
}
HOST_KERNEL(conv)
