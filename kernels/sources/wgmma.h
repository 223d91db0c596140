// wgmma.mma_async on a device. D's registers come first in an instruction's text, so there is one
// text for each width; both operands from shared memory, or A from registers.
#pragma once

// Eight registers of D, in the text and as operands.
#define D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define D1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define D2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define D3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define D4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define D5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define D6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define D7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define D8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define D9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define D10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define D11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define D12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define D13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define D14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define D15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define EIGHT(i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])

// `accumulate` 0 writes D anew. The last numbers: no negation of A or B, and B as rows along K.
#define WGMMA(T, TYPE, N, REGISTERS, A, B, P, ...)                                             \
    template <>                                                                               \
    __device__ __forceinline__ void wgmma<T, N>(float (&d)[N / 2], Descriptor a, Descriptor b, \
                                                int accumulate) {                             \
        asm volatile(                                                                         \
            "{\n"                                                                             \
            ".reg .pred accumulate;\n"                                                        \
            "setp.ne.b32 accumulate, " P ", 0;\n"                                             \
            "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS     \
            "}, " A ", " B ", accumulate, 1, 1, 0, 0;\n"                                      \
            "}"                                                                               \
            : __VA_ARGS__                                                                     \
            : "l"(a), "l"(b), "r"(accumulate));                                               \
    }
#define WGMMA_OF_BOTH(N, REGISTERS, A, B, P, ...)                  \
    WGMMA(half, "f16", N, REGISTERS, A, B, P, __VA_ARGS__)         \
    WGMMA(bfloat16, "bf16", N, REGISTERS, A, B, P, __VA_ARGS__)

template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], Descriptor a, Descriptor b,
                                      int accumulate);
WGMMA_OF_BOTH(64, D0 ", " D1 ", " D2 ", " D3, "%32", "%33", "%34",
              EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24))
WGMMA_OF_BOTH(80, D0 ", " D1 ", " D2 ", " D3 ", " D4, "%40", "%41", "%42",
              EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32))
WGMMA_OF_BOTH(128, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7, "%64", "%65", "%66",
              EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56))
WGMMA_OF_BOTH(160, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7 ", " D8 ", " D9, "%80", "%81", "%82",
              EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56), EIGHT(64), EIGHT(72))
WGMMA_OF_BOTH(256, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7 ", " D8 ", " D9 ", " D10 ", " D11 ", " D12 ", " D13 ", " D14 ", " D15, "%128", "%129", "%130",
              EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56), EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88), EIGHT(96), EIGHT(104), EIGHT(112), EIGHT(120))

// A from registers, B with its columns along the rows of shared memory: the last number is 1.
#define WGMMA_ACROSS(T, TYPE, N, REGISTERS, A, B, P, ...)                                          \
    template <>                                                                                   \
    __device__ __forceinline__ void wgmma_across<T, N>(float (&d)[N / 2], const unsigned (&a)[4], \
                                                       Descriptor b, int accumulate) {            \
        asm volatile(                                                                             \
            "{\n"                                                                                 \
            ".reg .pred accumulate;\n"                                                            \
            "setp.ne.b32 accumulate, " P ", 0;\n"                                                 \
            "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS         \
            "}, {" A "}, " B ", accumulate, 1, 1, 1;\n"                                           \
            "}"                                                                                   \
            : __VA_ARGS__                                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));               \
    }
#define WGMMA_ACROSS_OF_BOTH(N, REGISTERS, A, B, P, ...)          \
    WGMMA_ACROSS(half, "f16", N, REGISTERS, A, B, P, __VA_ARGS__) \
    WGMMA_ACROSS(bfloat16, "bf16", N, REGISTERS, A, B, P, __VA_ARGS__)

template <class T, int N>
__device__ __forceinline__ void wgmma_across(float (&d)[N / 2], const unsigned (&a)[4], Descriptor b,
                                             int accumulate);
WGMMA_ACROSS_OF_BOTH(64, D0 ", " D1 ", " D2 ", " D3,
                     "%32, %33, %34, %35", "%36", "%37",
                     EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24))
WGMMA_ACROSS_OF_BOTH(128, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7,
                     "%64, %65, %66, %67", "%68", "%69",
                     EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56))

#undef WGMMA_ACROSS_OF_BOTH
#undef WGMMA_ACROSS
#undef WGMMA_OF_BOTH
#undef WGMMA
#undef EIGHT
#undef D0
#undef D1
#undef D2
#undef D3
#undef D4
#undef D5
#undef D6
#undef D7
#undef D8
#undef D9
#undef D10
#undef D11
#undef D12
#undef D13
#undef D14
#undef D15
