// One row of each image: that of a certain token, or of the largest token, as text encoders pool.
#include "kernel.h"
#include "vector.h"

enum { kThreads = 128 };

// grid (images), threads over the columns; ids [images, tokens] with the stride of images, source
// [images, tokens, columns] with the strides of images and tokens, output [images, columns]. Taken is
// the first id equal to `token` (the row 0 where there is none), or where `token` is negative the
// first largest. Every thread looks for it: the ids are few, and the first to read them pays.
extern "C" __global__ void __launch_bounds__(kThreads)
    select_row(const long long* ids, const ELEMENT* source, ELEMENT* output, int tokens,
               int columns, int token, int ids_stride, int image_stride, int token_stride,
               int output_stride) {
    release_successor();
    wait_for_predecessor();
    const long long* of_image = ids + (long long)blockIdx.x * ids_stride;
    int taken = 0;
    for (int i = 1; i < tokens; i++) {
        const long long id = of_image[i], best = of_image[taken];
        if (token < 0 ? id > best : id == token && best != token) taken = i;
    }
    const ELEMENT* row =
        source + (long long)blockIdx.x * image_stride + (long long)taken * token_stride;
    ELEMENT* to = output + (long long)blockIdx.x * output_stride;
    for (int column = threadIdx.x * kVector; column < columns; column += kThreads * kVector)
        *reinterpret_cast<Vector<ELEMENT>*>(to + column) =
            *reinterpret_cast<const Vector<ELEMENT>*>(row + column);
}
HOST_KERNEL(select_row)
