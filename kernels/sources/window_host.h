// Shared memory by the addresses that descriptors and tensor maps reckon with, on the host.
#pragma once

namespace host {

// The shared window of a block: as on sm_90 the first KiB is the system's, then dynamic, then static
// shared memory.
constexpr unsigned kWindow = 1024;
constexpr unsigned kStatic = kWindow + unsigned(kMostShared + kGuard);

static unsigned window_address(const void* pointer) {
    const char* at = static_cast<const char*>(pointer);
    if (at >= dynamic_shared && at <= dynamic_shared + dynamic_bytes)
        return kWindow + unsigned(at - dynamic_shared);
    require(at >= __start_shared_memory && at <= __stop_shared_memory,
            "an address outside the shared memory of the block");
    return kStatic + unsigned(at - __start_shared_memory);
}

static unsigned char* at_window(unsigned address, unsigned bytes) {
    char* const at = address >= kStatic ? __start_shared_memory + (address - kStatic)
                                        : dynamic_shared + int(address - kWindow);
    require_shared(at, 1);
    require_shared(at + bytes - 1, 1);
    return reinterpret_cast<unsigned char*>(at);
}

// The same place in a block of the cluster.
template <class T>
static T* in_block(T* pointer, unsigned rank) {
    const char* at = reinterpret_cast<const char*>(pointer);
    require(at >= dynamic_shared && at <= dynamic_shared + dynamic_bytes && rank < cluster_blocks,
            "a place in another block that is not in its dynamic shared memory");
    return reinterpret_cast<T*>(dynamic_memory[rank] + (at - dynamic_shared));
}

// The chunk of 16 bytes that takes this one's place: bits of the address itself are mixed.
static unsigned swizzled(unsigned address, unsigned span) {
    const unsigned mask = span / 16 - 1;  // 7, 3 or 1 for 128, 64 or 32 bytes
    return span ? address ^ (address >> 7 & mask) << 4 : address;
}

}  // namespace host
