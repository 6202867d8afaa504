// Which instruction set is in use.
#include "kernels.hpp"

#include <atomic>
#include <cstring>

namespace mw {
namespace {

// The best first. A set is offered only where the processor, and the system that must save its registers, has it.
const Kernels *available(int index) {
    switch (index) {
#if defined(MW_HAS_AVX512)
        case 0:
            __builtin_cpu_init();
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
                       ? kernels_avx512()
                       : nullptr;
#endif
#if defined(MW_HAS_AVX2)
        case 1:
            __builtin_cpu_init();
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kernels_avx2() : nullptr;
#endif
#if defined(MW_HAS_NEON)
        case 2: return kernels_neon();
#endif
        case 3: return kernels_portable();
        default: return nullptr;
    }
}

constexpr int kSets = 4;
std::atomic<const Kernels *> chosen{nullptr};

}  // namespace

const Kernels &kernels() {
    const Kernels *now = chosen.load();
    for (int i = 0; now == nullptr; ++i) now = available(i);
    chosen = now;
    return *now;
}

bool use_kernels(const char *name) {
    for (int i = 0; i < kSets; ++i) {
        const Kernels *set = available(i);
        if (set != nullptr && std::strcmp(set->name, name) == 0) {
            chosen = set;
            return true;
        }
    }
    return false;
}

}  // namespace mw
