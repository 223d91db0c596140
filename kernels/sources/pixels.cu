// A decoded picture as bytes, with its colours side by side, and whether all of it was finite.
#include "kernel.h"
#include "vector.h"

enum { kThreads = 256, kColours = 3, kWords = kVector * kColours / 4 };

struct alignas(8) Two {
    unsigned words[2];
};

// The steps of NumPy in float32, so the same byte: halves to even. The product by 0.5 is exact, so it
// makes no difference whether the sum is fused with it. NaN becomes 0.
__device__ __forceinline__ unsigned byte_of(float value) {
    const float unit = fminf(fmaxf(value * 0.5f + 0.5f, 0.0f), 1.0f);
    return unsigned(rintf(unit * 255.0f));
}

// grid (blocks, images), one thread for eight neighbouring pixels of `count`; image [images, 3, count],
// output [images, count, 3]. Where 8 divides the count they are whole vectors. `not_finite` becomes 1
// where a number is infinite or NaN, else it stays as it is.
extern "C" __global__ void __launch_bounds__(kThreads)
    pixels(const ELEMENT* image, unsigned char* output, int* not_finite, int count) {
    const int first = int(blockIdx.x * kThreads + threadIdx.x) * kVector;
    if (first >= count) return;
    const bool whole = count % kVector == 0;
    const long long pixel = (long long)blockIdx.y * count + first;
    const ELEMENT* from = image + pixel + (long long)blockIdx.y * (kColours - 1) * count;
    unsigned char* to = output + pixel * kColours;
    unsigned words[kWords] = {};
    bool finite = true;
#pragma unroll
    for (int colour = 0; colour < kColours; colour++) {
        const ELEMENT* plane = from + (long long)colour * count;
        float values[kVector];
        if (whole) {
            const Vector<ELEMENT> loaded = *reinterpret_cast<const Vector<ELEMENT>*>(plane);
#pragma unroll
            for (int i = 0; i < kVector; i++) values[i] = to_float(loaded.values[i]);
        } else {
#pragma unroll
            for (int i = 0; i < kVector; i++)
                values[i] = first + i < count ? to_float(plane[i]) : 0;
        }
#pragma unroll
        for (int i = 0; i < kVector; i++) {
            const int place = i * kColours + colour;
            words[place / 4] |= byte_of(values[i]) << place % 4 * 8;
            finite = finite && fabsf(values[i]) <= 3.402823466e38f;
        }
    }
    if (!finite) *not_finite = 1;
    if (whole) {
#pragma unroll
        for (int i = 0; i < kWords / 2; i++)
            reinterpret_cast<Two*>(to)[i] = {words[2 * i], words[2 * i + 1]};
    } else {
#pragma unroll
        for (int place = 0; place < kVector * kColours; place++)
            if (first + place / kColours < count)
                to[place] = (unsigned char)(words[place / 4] >> place % 4 * 8);
    }
}
HOST_KERNEL(pixels)
