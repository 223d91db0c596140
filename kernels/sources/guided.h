// Classifier-free guidance (Ho and Salimans, 2022) of one element, shared by the two kernels that
// need it: its deviation must be that of the very numbers that are used.
#pragma once

// prediction [rows, images, elements], unconditional first; `offset` is that of the first row
template <class T>
__device__ __forceinline__ float conditional_of(const T* prediction, long long offset,
                                                long long row, int rows) {
    return to_float(prediction[offset + (rows - 1) * row]);
}

template <class T>
__device__ __forceinline__ float guided_of(const T* prediction, long long offset, float conditional,
                                           float scale, int rows) {
    if (rows == 1) return conditional;
    const float unconditional = to_float(prediction[offset]);
    return unconditional + scale * (conditional - unconditional);
}
