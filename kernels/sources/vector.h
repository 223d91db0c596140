// Eight neighbours at once: a row of eight float16 is one load of 16 bytes.
#pragma once

enum { kVector = 8 };

template <class T>
struct alignas(16) Vector {
    T values[kVector];
};
