// Group normalisation from the moments of group_statistics, then SiLU where ACTIVATE is 1, NHWC. The
// channels lie in one source, or side by side in two.
#include "kernel.h"
#include "activation.h"
#include "sources.h"
#include "vector.h"

enum { kMostThreads = 320, kAtOnce = 4 };

// grid (blocks, images), threads: `lanes` pixels by channels / 8; first, second and output
// [images, pixels, ...] with the strides of their pixels, moments [images, groups, 2], weight and
// bias [channels]
extern "C" __global__ void __launch_bounds__(kMostThreads)
    group_norm(const ELEMENT* first, const ELEMENT* second, const float* moments,
               const ELEMENT* weight, const ELEMENT* bias, ELEMENT* output, int pixels,
               int channels, int first_channels, int first_stride, int second_stride,
               int output_stride, int groups, int chunk_pixels, int lanes) {
    release_successor();
    wait_for_predecessor();
    const int vectors = channels / kVector, width = channels / groups;  // of a group
    const int lane = threadIdx.x / vectors, channel = threadIdx.x % vectors * kVector;
    if (lane >= lanes) return;
    const Vector<ELEMENT> w = *reinterpret_cast<const Vector<ELEMENT>*>(weight + channel);
    const Vector<ELEMENT> b = *reinterpret_cast<const Vector<ELEMENT>*>(bias + channel);
    float mean[kVector], scale[kVector], shift[kVector];
    int group = channel / width, last = (group + 1) * width - 1;  // its last channel
#pragma unroll
    for (int i = 0; i < kVector; i++) {
        const float* moment = moments + (blockIdx.y * groups + group) * 2;
        mean[i] = moment[0];
        scale[i] = moment[1] * to_float(w.values[i]);
        shift[i] = to_float(b.values[i]);
        if (channel + i == last) group++, last += width;
    }
    const int begin = blockIdx.x * chunk_pixels;
    const int end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
    const long long image = (long long)blockIdx.y * pixels;
    const Channel<ELEMENT> own =
        channel_of(first, second, channel, first_channels, first_stride, second_stride);
    for (int pixel = begin + lane; pixel < end; pixel += lanes * kAtOnce) {
        // All loads come first: the compiler may not move them past the stores, as the output may be
        // the input.
        Vector<ELEMENT> loaded[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; j++)
            if (pixel + j * lanes < end) {
                const long long at = (image + pixel + j * lanes) * own.stride;
                loaded[j] = *reinterpret_cast<const Vector<ELEMENT>*>(own.first_pixel + at);
            }
#pragma unroll
        for (int j = 0; j < kAtOnce; j++)
            if (pixel + j * lanes < end) {
                Vector<ELEMENT> out;
#pragma unroll
                for (int i = 0; i < kVector; i++) {
                    float y = (to_float(loaded[j].values[i]) - mean[i]) * scale[i] + shift[i];
                    if (ACTIVATE) y = sizeof(ELEMENT) == 2 ? fast_silu(y) : silu(y);
                    store(out.values + i, y);
                }
                const long long to = (image + pixel + j * lanes) * output_stride + channel;
                *reinterpret_cast<Vector<ELEMENT>*>(output + to) = out;
            }
    }
}
HOST_KERNEL(group_norm)
