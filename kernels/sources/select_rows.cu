// The timestep projections of one evaluation: row `index` of each table, copied to a fixed place.
#include "kernel.h"
#include "step_table.h"

enum { kThreads = 256 };

struct Table {
    const unsigned char* rows;   // [evaluations, bytes]
    unsigned char* destination;  // [bytes]
    long long bytes;
};
struct alignas(16) Sixteen {
    unsigned long long low, high;
};

// grid (blocks, tables); all addresses and sizes divide by 16
extern "C" __global__ void __launch_bounds__(kThreads)
    select_rows(const Cursor* cursor, const Table* tables) {
    const int index = cursor->index;
    if (index >= cursor->count) return;
    const Table table = tables[blockIdx.y];
    const Sixteen* from = reinterpret_cast<const Sixteen*>(table.rows + index * table.bytes);
    Sixteen* to = reinterpret_cast<Sixteen*>(table.destination);
    const long long count = table.bytes / 16, stride = (long long)gridDim.x * kThreads;
    for (long long i = (long long)blockIdx.x * kThreads + threadIdx.x; i < count; i += stride)
        to[i] = from[i];
}
HOST_KERNEL(select_rows)
