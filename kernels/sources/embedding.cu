// A row of the table for each token, plus that of its position.
#include "kernel.h"
#include "vector.h"

enum { kThreads = 128 };

// grid (tokens, images), threads over the columns; ids [images, tokens] with the stride of images,
// table [vocabulary, columns], positions [at least tokens, columns], output [images, tokens, columns].
// A token outside the vocabulary gives NaN, as nothing here can raise an error.
extern "C" __global__ void __launch_bounds__(kThreads)
    embedding(const long long* ids, const ELEMENT* table, const ELEMENT* positions, ELEMENT* output,
              int columns, int vocabulary, int ids_stride) {
    release_successor();
    wait_for_predecessor();
    const long long id = ids[(long long)blockIdx.y * ids_stride + blockIdx.x];
    const bool known = id >= 0 && id < vocabulary;
    const float unknown = known ? 0.0f : sqrtf(-1.0f);  // NaN
    const ELEMENT* row = table + (known ? id : 0) * columns;
    const ELEMENT* position = positions + (long long)blockIdx.x * columns;
    ELEMENT* to = output + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * columns;
    for (int column = threadIdx.x * kVector; column < columns; column += kThreads * kVector) {
        const Vector<ELEMENT> word = *reinterpret_cast<const Vector<ELEMENT>*>(row + column);
        const Vector<ELEMENT> place = *reinterpret_cast<const Vector<ELEMENT>*>(position + column);
        Vector<ELEMENT> out;
#pragma unroll
        for (int i = 0; i < kVector; i++)
            store(out.values + i,
                  to_float(word.values[i]) + to_float(place.values[i]) + unknown);
        *reinterpret_cast<Vector<ELEMENT>*>(to + column) = out;
    }
}
HOST_KERNEL(embedding)
