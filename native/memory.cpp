#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__has_feature)
#define MW_HAS_FEATURE(name) __has_feature(name)
#else
#define MW_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || MW_HAS_FEATURE(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif

namespace mw {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

size_t rounded(size_t bytes) {
    // Classes an eighth of their size apart, so that buffers whose size follows the routing find each other.
    size_t step = kLine;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

void *from_system(size_t bytes) {
    const bool huge = bytes >= kHugePage;
    const size_t alignment = huge ? kHugePage : kLine;
    const size_t padded = (bytes + alignment - 1) / alignment * alignment;
    void *buffer = std::aligned_alloc(alignment, padded);
#if defined(__linux__)
    // Thousands of faults for 4 KiB pages cost more than the arithmetic of small experts.
    if (buffer != nullptr && huge) madvise(buffer, padded, MADV_HUGEPAGE);
#endif
    return buffer;
}

// Under AddressSanitizer: what was asked for may be touched, the rest of its class and unused buffers may not.
#if defined(__SANITIZE_ADDRESS__) || MW_HAS_FEATURE(address_sanitizer)
void close(void *buffer, size_t size) { ASAN_POISON_MEMORY_REGION(buffer, size); }
void open(void *buffer, size_t size, size_t bytes) {
    ASAN_POISON_MEMORY_REGION(buffer, size);
    ASAN_UNPOISON_MEMORY_REGION(buffer, bytes);
}
#else
void close(void *, size_t) {}
void open(void *, size_t, size_t) {}
#endif

// Never holds more in all, used and unused, than was used at some time: caching does not raise the peak.
class Cache {
  public:
    void *allocate(size_t bytes) {
        const size_t size = rounded(bytes);
        std::lock_guard<std::mutex> lock(mutex_);
        const size_t peak = peak_;
        used_ += size;
        peak_ = std::max(peak_, used_);
        void *buffer = nullptr;
        auto found = unused_.find(size);
        if (found != unused_.end()) {
            buffer = found->second;
            unused_.erase(found);
            cached_ -= size;
        } else {
            shrink(peak_ - used_);
            buffer = from_system(size);
        }
        if (buffer == nullptr) {
            used_ -= size;
            peak_ = peak;
            throw std::bad_alloc();
        }
        sizes_[buffer] = size;
        open(buffer, size, bytes);
        return buffer;
    }

    void release(void *buffer) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = sizes_.find(buffer);
        if (found == sizes_.end()) return;
        used_ -= found->second;
        cached_ += found->second;
        close(buffer, found->second);
        unused_.emplace(found->second, buffer);
        sizes_.erase(found);
    }

    size_t cached() {
        std::lock_guard<std::mutex> lock(mutex_);
        return cached_;
    }

    void clear() {
        std::lock_guard<std::mutex> lock(mutex_);
        shrink(0);
        peak_ = used_;
    }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    void shrink(size_t limit) {
        while (cached_ > limit) {
            auto largest = std::prev(unused_.end());
            cached_ -= largest->first;
            open(largest->second, largest->first, largest->first);
            std::free(largest->second);
            unused_.erase(largest);
        }
    }

    std::mutex mutex_;
    std::multimap<size_t, void *> unused_;
    std::unordered_map<void *, size_t> sizes_;
    size_t used_ = 0, cached_ = 0, peak_ = 0;
};

// Never destroyed: buffers may be released after static destructors have run.
Cache &cache() {
    static Cache *instance = [] {
        auto *made = new Cache;
#if defined(__unix__) || defined(__APPLE__)
        // A fork must not copy a lock that another thread holds.
        pthread_atfork([] { cache().lock(); }, [] { cache().unlock(); }, [] { cache().unlock(); });
#endif
        return made;
    }();
    return *instance;
}

}  // namespace

void *allocate(size_t bytes) { return cache().allocate(std::max(bytes, size_t{1})); }

void release(void *buffer) {
    if (buffer != nullptr) cache().release(buffer);
}

int64_t cached_bytes() { return static_cast<int64_t>(cache().cached()); }

void release_cache() { cache().clear(); }

}  // namespace mw
