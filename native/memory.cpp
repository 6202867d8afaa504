#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <list>
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

constexpr size_t kLine = 64, kPage = 4096, kHugePage = size_t{2} << 20, kSlackBytes = size_t{8} << 20;

size_t rounded(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void *from_system(size_t bytes) {
    const bool huge = bytes >= kHugePage;
    const size_t alignment = huge ? kHugePage : kLine;
    const size_t padded = rounded(bytes, alignment);
    void *buffer = std::aligned_alloc(alignment, padded);
#if defined(__linux__)
    // Thousands of faults for 4 KiB pages cost more than the arithmetic of small experts.
    if (buffer != nullptr && huge) madvise(buffer, padded, MADV_HUGEPAGE);
#endif
    return buffer;
}

// Under AddressSanitizer only the requested bytes may be touched, not the rest of a reused buffer or free ones.
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

// Buffers that are free again. Used and free ones together stay near the largest use so far, so that caching
// hardly raises the peak.
class Cache {
  public:
    void *allocate(size_t bytes) {
        const size_t size = rounded(std::max(bytes, size_t{1}), kLine);
        std::lock_guard<std::mutex> lock(mutex_);
        Block block = take_fitting(size);
        if (block.data == nullptr) {
            block.size = size;
            shrink(room_for(size));
            block.data = from_system(size);
        }
        if (block.data == nullptr) throw std::bad_alloc();
        used_ += block.size;
        peak_ = std::max(peak_, used_);
        sizes_[block.data] = block.size;
        open(block.data, block.size, bytes);
        return block.data;
    }

    void release(void *buffer) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = sizes_.find(buffer);
        if (found == sizes_.end()) return;
        used_ -= found->second;
        cached_ += found->second;
        close(buffer, found->second);
        unused_.push_back({buffer, found->second});
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
    struct Block {
        void *data = nullptr;
        size_t size = 0;
    };

    // The smallest unused block that holds `size` and wastes at most a quarter; the sizes of many buffers follow
    // the routing and are never the same twice.
    Block take_fitting(size_t size) {
        auto best = unused_.end();
        for (auto block = unused_.begin(); block != unused_.end(); ++block)
            if (block->size >= size && block->size <= size + size / 4 + kPage &&
                (best == unused_.end() || block->size < best->size))
                best = block;
        if (best == unused_.end()) return {};
        const Block found = *best;
        unused_.erase(best);
        cached_ -= found.size;
        return found;
    }

    // Bytes that the cache may keep once `size` more are in use. The slack is for small buffers that are not in use at the
    // peak: without it they would drive out the large ones.
    size_t room_for(size_t size) const {
        const size_t limit = peak_ + kSlackBytes, needed = used_ + size;
        return limit > needed ? limit - needed : 0;
    }

    // The smallest are freed first: a freed block costs the clearing of its pages when it is needed again.
    void shrink(size_t limit) {
        while (cached_ > limit) {
            auto smallest = std::min_element(unused_.begin(), unused_.end(),
                                             [](const Block &a, const Block &b) { return a.size < b.size; });
            cached_ -= smallest->size;
            open(smallest->data, smallest->size, smallest->size);
            std::free(smallest->data);
            unused_.erase(smallest);
        }
    }

    std::mutex mutex_;
    std::list<Block> unused_;
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

void *allocate(size_t bytes) { return cache().allocate(bytes); }

void release(void *buffer) {
    if (buffer != nullptr) cache().release(buffer);
}

int64_t cached_bytes() { return static_cast<int64_t>(cache().cached()); }

void release_cache() { cache().clear(); }

}  // namespace mw
