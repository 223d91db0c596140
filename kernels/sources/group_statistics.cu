// Mean and reciprocal deviation of each group of channels of an image, NHWC (Wu and He, 2018).
//
// Each block sums over some pixels, shifted by the first of them so that nothing cancels, and
// merges the channels of a group; the last block of an image merges the blocks (Chan et al., 1979).
#include "kernel.h"
#include "reduce.h"
#include "vector.h"

enum {
    kMostThreads = 320,
    kMostChannels = kMostThreads * kVector,
};

// One block a multiprocessor is enough here: without the 1 in its bounds the assembler spills to fit
// more. grid (chunks, images), threads: `lanes` pixels by channels / 8, rounded up to whole warps;
// input [images, pixels, channels], partial [images, chunks, groups, 2], arrived [images] is 0,
// moments [images, groups, 2]
extern "C" __global__ void __launch_bounds__(kMostThreads, 1)
    group_statistics(const ELEMENT* input, float* partial, unsigned* arrived, float* moments,
                     int pixels, int channels, int groups, int chunk_pixels, int lanes,
                     float epsilon) {
    __shared__ float sums[kMostChannels], squares[kMostChannels];  // [lanes, channels]
    __shared__ int last;
    const int vectors = channels / kVector;
    const int vector = threadIdx.x % vectors, lane = threadIdx.x / vectors;
    const int begin = blockIdx.x * chunk_pixels;
    const int end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
    const ELEMENT* image = input + (long long)blockIdx.y * pixels * channels;
    const ELEMENT* first = image + (long long)begin * channels;

    if (lane < lanes) {
        float shift[kVector], sum[kVector], square[kVector];
        const Vector<ELEMENT> reference =
            *reinterpret_cast<const Vector<ELEMENT>*>(first + vector * kVector);
#pragma unroll
        for (int i = 0; i < kVector; i++) {
            shift[i] = to_float(reference.values[i]);
            sum[i] = square[i] = 0;
        }
        for (int pixel = begin + lane; pixel < end; pixel += lanes) {
            const Vector<ELEMENT> loaded = *reinterpret_cast<const Vector<ELEMENT>*>(
                image + (long long)pixel * channels + vector * kVector);
#pragma unroll
            for (int i = 0; i < kVector; i++) {
                const float off = to_float(loaded.values[i]) - shift[i];
                sum[i] += off;
                square[i] += off * off;
            }
        }
#pragma unroll
        for (int i = 0; i < kVector; i++) {
            sums[lane * channels + vector * kVector + i] = sum[i];
            squares[lane * channels + vector * kVector + i] = square[i];
        }
    }
    __syncthreads();

    const int width = channels / groups;
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, at = threadIdx.x % kWarp;
    const float count = end - begin;
    // One division here: among the sums each would be a call, with its registers on the stack.
    const float per_pixel = 1 / count, per_channel = 1 / float(width);
    float* mine = partial + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * groups * 2;
    for (int group = warp; group < groups; group += warps) {
        float total = 0;
        for (int i = at; i < width; i += kWarp) {
            const int channel = group * width + i;
            float sum = 0;
            for (int l = 0; l < lanes; l++) sum += sums[l * channels + channel];
            total += to_float(first[channel]) + sum * per_pixel;
        }
        const float mean = warp_sum(total) * per_channel;
        float squared = 0;
        for (int i = at; i < width; i += kWarp) {
            const int channel = group * width + i;
            float sum = 0, square = 0;
            for (int l = 0; l < lanes; l++) {
                sum += sums[l * channels + channel];
                square += squares[l * channels + channel];
            }
            const float off = to_float(first[channel]) + sum * per_pixel - mean;
            squared += square - sum * sum * per_pixel + off * off * count;
        }
        squared = warp_sum(squared);
        if (at == 0) {
            mine[group * 2] = mean;
            mine[group * 2 + 1] = squared;
        }
    }

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicInc(arrived + blockIdx.y, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    // Written by other blocks: volatile keeps the reads out of this SM's own cache.
    const volatile float* all = partial + (long long)blockIdx.y * gridDim.x * groups * 2;
    const float per_image = 1 / float(pixels);
    float* out = moments + (long long)blockIdx.y * groups * 2;
    for (int group = warp; group < groups; group += warps) {
        float total = 0;
        for (int chunk = at; chunk < int(gridDim.x); chunk += kWarp) {
            const int left = pixels - chunk * chunk_pixels;
            const float weight = left < chunk_pixels ? left : chunk_pixels;
            total += all[(chunk * groups + group) * 2] * weight;
        }
        const float mean = warp_sum(total) * per_image;
        float squared = 0;
        for (int chunk = at; chunk < int(gridDim.x); chunk += kWarp) {
            const int left = pixels - chunk * chunk_pixels;
            const float weight = (left < chunk_pixels ? left : chunk_pixels) * float(width);
            const float off = all[(chunk * groups + group) * 2] - mean;
            squared += all[(chunk * groups + group) * 2 + 1] + off * off * weight;
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
