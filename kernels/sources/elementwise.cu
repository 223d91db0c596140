// A function of one or two strided arrays, in float32, for what no epilogue takes; with `copy` it is
// every transpose, cast, slice and widening. VECTOR neighbours of the last dimension are one load.
#include "kernel.h"
#include "activation.h"
#include "vector.h"

enum { kThreads = 256, kVectorWidth = VECTOR };
enum Function { kCopy, kAdd, kMultiply, kSigmoid, kSilu, kGelu, kQuickGelu, kClip };
enum Type { kFloat16, kBfloat16, kFloat32 };  // as TYPES of elementwise.py

// Neighbours from an element on, or one that is repeated.
template <class T>
__device__ __forceinline__ void load_as(const void* from, long long at, int stride,
                                        float (&x)[kVectorWidth]) {
    const T* place = static_cast<const T*>(from) + at;
    if (kVectorWidth == kVector && stride == 1) {
        const Vector<T> loaded = *reinterpret_cast<const Vector<T>*>(place);
#pragma unroll
        for (int i = 0; i < kVectorWidth; i++) x[i] = to_float(loaded.values[i]);
    } else {
        const float value = to_float(*place);
#pragma unroll
        for (int i = 0; i < kVectorWidth; i++) x[i] = value;
    }
}
template <class T>
__device__ __forceinline__ void store_as(void* to, long long at, const float (&x)[kVectorWidth]) {
    T* place = static_cast<T*>(to) + at;
    if (kVectorWidth == kVector) {
        Vector<T> out;
#pragma unroll
        for (int i = 0; i < kVectorWidth; i++) store(out.values + i, x[i]);
        *reinterpret_cast<Vector<T>*>(place) = out;
    } else {
        store(place, x[0]);
    }
}
__device__ __forceinline__ void load(const void* from, int type, long long at, int stride,
                                     float (&x)[kVectorWidth]) {
    if (type == kFloat16) load_as<half>(from, at, stride, x);
    else if (type == kBfloat16) load_as<bfloat16>(from, at, stride, x);
    else load_as<float>(from, at, stride, x);
}

__device__ __forceinline__ float of(int function, float x, float y, float low, float high) {
    switch (function) {
        case kAdd: return x + y + low;
        case kMultiply: return low * x * y;
        case kSigmoid: return sigmoid(x);
        case kSilu: return silu(x);
        case kGelu: return gelu(x);
        case kQuickGelu: return quick_gelu(x);
        case kClip: return x < low ? low : x > high ? high : x;  // NaN stays
        default: return x;
    }
}

// grid (blocks), one thread for VECTOR elements of an output of sizes [size0 .. size3]; those of its
// last dimension from `valid` on are 0, and there nothing is read
extern "C" __global__ void __launch_bounds__(kThreads)
    elementwise(const void* first, const void* second, void* output, int function, float low,
                float high, int size0, int size1, int size2, int size3, int valid, int first_type,
                int first_stride0, int first_stride1, int first_stride2, int first_stride3,
                int second_type, int second_stride0, int second_stride1, int second_stride2,
                int second_stride3, int output_type, int output_stride0, int output_stride1,
                int output_stride2, int output_stride3) {
    release_successor();
    wait_for_predecessor();
    const int vectors = size3 / kVectorWidth;
    long long rest = (long long)blockIdx.x * kThreads + threadIdx.x;
    const int d = int(rest % vectors) * kVectorWidth;
    rest /= vectors;
    const int c = int(rest % size2);
    rest /= size2;
    const int b = int(rest % size1);
    const int a = int(rest / size1);
    if (a >= size0) return;
    const auto offset = [&](int stride0, int stride1, int stride2, int stride3) {
        return (long long)a * stride0 + (long long)b * stride1 + (long long)c * stride2 +
               (long long)d * stride3;
    };
    float x[kVectorWidth], y[kVectorWidth];
#pragma unroll
    for (int i = 0; i < kVectorWidth; i++) {
        x[i] = 0;
        y[i] = function == kMultiply;
    }
    if (d < valid) {
        load(first, first_type, offset(first_stride0, first_stride1, first_stride2, first_stride3),
             first_stride3, x);
        if (second)
            load(second, second_type,
                 offset(second_stride0, second_stride1, second_stride2, second_stride3),
                 second_stride3, y);
#pragma unroll
        for (int i = 0; i < kVectorWidth; i++) x[i] = of(function, x[i], y[i], low, high);
    }
    const long long to = offset(output_stride0, output_stride1, output_stride2, output_stride3);
    if (output_type == kFloat16) store_as<half>(output, to, x);
    else if (output_type == kBfloat16) store_as<bfloat16>(output, to, x);
    else store_as<float>(output, to, x);
}
HOST_KERNEL(elementwise)
