// Group normalisation from the moments of group_statistics, then SiLU where ACTIVATE is 1, NHWC.
#include "kernel.h"
#include "vector.h"

enum { kMostThreads = 320 };

// grid (blocks, images), threads: `lanes` pixels by channels / 8; input and output
// [images, pixels, channels], moments [images, groups, 2], weight and bias [channels]
extern "C" __global__ void __launch_bounds__(kMostThreads)
    group_norm(const ELEMENT* input, const float* moments, const ELEMENT* weight,
               const ELEMENT* bias, ELEMENT* output, int pixels, int channels, int groups,
               int chunk_pixels, int lanes) {
    const int vectors = channels / kVector, width = channels / groups;
    const int lane = threadIdx.x / vectors, channel = threadIdx.x % vectors * kVector;
    if (lane >= lanes) return;
    const Vector<ELEMENT> w = *reinterpret_cast<const Vector<ELEMENT>*>(weight + channel);
    const Vector<ELEMENT> b = *reinterpret_cast<const Vector<ELEMENT>*>(bias + channel);
    float mean[kVector], scale[kVector], shift[kVector];
#pragma unroll
    for (int i = 0; i < kVector; i++) {
        const float* moment = moments + (blockIdx.y * groups + (channel + i) / width) * 2;
        mean[i] = moment[0];
        scale[i] = moment[1] * to_float(w.values[i]);
        shift[i] = to_float(b.values[i]);
    }
    const int begin = blockIdx.x * chunk_pixels;
    const int end = pixels - begin < chunk_pixels ? pixels : begin + chunk_pixels;
    const long long image = (long long)blockIdx.y * pixels * channels + channel;
    for (int pixel = begin + lane; pixel < end; pixel += lanes) {
        const long long place = image + (long long)pixel * channels;
        const Vector<ELEMENT> loaded = *reinterpret_cast<const Vector<ELEMENT>*>(input + place);
        Vector<ELEMENT> out;
#pragma unroll
        for (int i = 0; i < kVector; i++) {
            float y = (to_float(loaded.values[i]) - mean[i]) * scale[i] + shift[i];
            if (ACTIVATE) y = y / (1 + expf(-y));
            store(out.values + i, y);
        }
        *reinterpret_cast<Vector<ELEMENT>*>(output + place) = out;
    }
}
HOST_KERNEL(group_norm)
