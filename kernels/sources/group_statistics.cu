// Mean and reciprocal deviation of each group of channels of an image, NHWC (Wu and He, 2018).
//
// Each block sums over some pixels, shifted by the first of them so that nothing cancels, and
// merges the channels of a group; the last block of an image merges the blocks (Chan et al., 1979).
// The channels lie in one source, or side by side in two.
#include "kernel.h"
#include "fresh.h"
#include "reduce.h"
#include "sources.h"
#include "vector.h"

enum {
    kMostThreads = 320,
    kMostChannels = kMostThreads * kVector,
    kMostChunks = 256,  // blocks of an image
    kAtOnce = 4,        // loads that a thread has under way
};

// One block a multiprocessor is enough here: without the 1 in its bounds the assembler spills to fit
// more. grid (chunks, images), threads: `lanes` pixels by channels / 8, rounded up to whole warps;
// first and second [images, pixels, ...] with the strides of their pixels,
// partial [images, groups, chunks], arrived [images] is 0, moments [images, groups, 2]
extern "C" __global__ void __launch_bounds__(kMostThreads, 1)
    group_statistics(const ELEMENT* first, const ELEMENT* second, Two* partial, unsigned* arrived,
                     float* moments, int pixels, int channels, int first_channels,
                     int first_stride, int second_stride, int groups, int chunk_pixels, int lanes,
                     float epsilon) {
    release_successor();
    wait_for_predecessor();
    __shared__ Vector<float> sums[kMostThreads], squares[kMostThreads];  // [lanes, channels]
    __shared__ int last;
    const int vectors = channels / kVector;
    const int vector = threadIdx.x % vectors, lane = threadIdx.x / vectors;
    const int begin = blockIdx.x * chunk_pixels;
    const int end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
    const long long image = (long long)blockIdx.y * pixels;

    if (lane < lanes) {
        const Channel<ELEMENT> own = channel_of(first, second, vector * kVector, first_channels,
                                                first_stride, second_stride);
        const auto load = [&](int pixel) {
            const ELEMENT* at = own.first_pixel + (image + pixel) * own.stride;
            return *reinterpret_cast<const Vector<ELEMENT>*>(at);
        };
        const Vector<ELEMENT> shift = load(begin);
        Vector<float> sum = {}, square = {};
        for (int pixel = begin + lane; pixel < end; pixel += lanes * kAtOnce) {
            Vector<ELEMENT> loaded[kAtOnce];
#pragma unroll
            for (int j = 0; j < kAtOnce; j++)  // Past the end the shift itself: it adds nothing.
                loaded[j] = pixel + j * lanes < end ? load(pixel + j * lanes) : shift;
#pragma unroll
            for (int j = 0; j < kAtOnce; j++)
#pragma unroll
                for (int i = 0; i < kVector; i++) {
                    const float off = to_float(loaded[j].values[i]) - to_float(shift.values[i]);
                    sum.values[i] += off;
                    square.values[i] += off * off;
                }
        }
        sums[lane * vectors + vector] = sum;
        squares[lane * vectors + vector] = square;
    }
    __syncthreads();

    const auto shift_of = [&](int channel) {
        const Channel<ELEMENT> at = channel_of(first, second, channel, first_channels, first_stride,
                                               second_stride);
        return to_float(at.first_pixel[(image + begin) * at.stride]);
    };
    const float* all_sums = sums[0].values;
    const float* all_squares = squares[0].values;
    const int width = channels / groups;
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, at = threadIdx.x % kWarp;
    const float count = end - begin;
    // One division here: among the sums each would be a call, with its registers on the stack.
    const float per_pixel = 1 / count, per_channel = 1 / float(width);
    Two* const parts = partial + (long long)blockIdx.y * groups * gridDim.x;
    for (int group = warp; group < groups; group += warps) {
        float total = 0;
        for (int i = at; i < width; i += kWarp) {
            const int channel = group * width + i;
            float sum = 0;
            for (int l = 0; l < lanes; l++) sum += all_sums[l * channels + channel];
            total += shift_of(channel) + sum * per_pixel;
        }
        const float mean = warp_sum(total) * per_channel;
        float squared = 0;
        for (int i = at; i < width; i += kWarp) {
            const int channel = group * width + i;
            float sum = 0, square = 0;
            for (int l = 0; l < lanes; l++) {
                sum += all_sums[l * channels + channel];
                square += all_squares[l * channels + channel];
            }
            const float off = shift_of(channel) + sum * per_pixel - mean;
            squared += square - sum * sum * per_pixel + off * off * count;
        }
        squared = warp_sum(squared);
        if (at == 0) parts[group * gridDim.x + blockIdx.x] = {mean, squared};
    }

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicInc(arrived + blockIdx.y, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const float per_image = 1 / float(pixels);
    float* out = moments + (long long)blockIdx.y * groups * 2;
    for (int group = warp; group < groups; group += warps) {
        Two part[kMostChunks / kWarp];  // all loads of a group are under way at once
        float total = 0, squared = 0;
#pragma unroll
        for (int j = 0; j < kMostChunks / kWarp; j++)
            if (j * kWarp + at < int(gridDim.x))
                part[j] = load_fresh(parts + group * gridDim.x + j * kWarp + at);
        const auto weight = [&](int j) {
            const int left = pixels - (j * kWarp + at) * chunk_pixels;
            return float(left < chunk_pixels ? left : chunk_pixels);
        };
#pragma unroll
        for (int j = 0; j < kMostChunks / kWarp; j++)
            if (j * kWarp + at < int(gridDim.x)) total += part[j].values[0] * weight(j);
        const float mean = warp_sum(total) * per_image;
#pragma unroll
        for (int j = 0; j < kMostChunks / kWarp; j++)
            if (j * kWarp + at < int(gridDim.x)) {
                const float off = part[j].values[0] - mean;
                squared += part[j].values[1] + off * off * weight(j) * float(width);
            }
        squared = warp_sum(squared);
        if (at == 0) {
            out[group * 2] = mean;
            out[group * 2 + 1] = squared * per_image * per_channel;
        }
    }
    __syncthreads();
    for (int group = threadIdx.x; group < groups; group += blockDim.x)
        out[group * 2 + 1] = 1 / sqrtf(out[group * 2 + 1] + epsilon);
}
HOST_KERNEL(group_statistics)
