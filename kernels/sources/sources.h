// Channels of a pixel that lie in one source, or side by side in two: what concatenation would write.
#pragma once

// The place of one channel (of eight neighbours, which lie in one source) in the first pixel.
template <class T>
struct Channel {
    const T* first_pixel;
    int stride;  // elements from one pixel to the next
};

template <class T>
__device__ __forceinline__ Channel<T> channel_of(const T* first, const T* second, int channel,
                                                 int first_channels, int first_stride,
                                                 int second_stride) {
    if (channel < first_channels) return {first + channel, first_stride};
    return {second + (channel - first_channels), second_stride};
}
