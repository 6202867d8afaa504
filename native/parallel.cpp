#include "parallel.hpp"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mw {
namespace {

using Work = std::function<void(int)>;

// Threads that sleep until there is work. One caller at a time has them; another one meanwhile works alone.
class Pool {
  public:
    bool try_run(int threads, const Work &work) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            next_ = 1;
            last_ = threads;
            running_ = 0;
        }
        wake_.notify_all();
        work(0);
        // Calls that no thread has begun yet are done here: a thread that gets no processor holds up nobody.
        for (int index; (index = take()) > 0;) run(index);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        work_ = nullptr;
        return true;
    }

  private:
    void grow(int helpers) {
        while (static_cast<int>(helpers_.size()) < helpers) {
            helpers_.emplace_back([this] { serve(); });
            helpers_.back().detach();
        }
    }

    int take() {
        std::lock_guard<std::mutex> lock(mutex_);
        return begin();
    }

    int begin() {
        if (work_ == nullptr || next_ >= last_) return 0;
        ++running_;
        return next_++;
    }

    void run(int index) {
        (*work_)(index);
        std::lock_guard<std::mutex> lock(mutex_);
        if (--running_ == 0) done_.notify_all();
    }

    void serve() {
        for (;;) {
            int index;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [this] { return work_ != nullptr && next_ < last_; });
                index = begin();
            }
            run(index);
        }
    }

    std::mutex owner_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> helpers_;
    const Work *work_ = nullptr;
    int next_ = 0, last_ = 0, running_ = 0;
};

// Never destroyed: its threads may outlive static destructors. A forked child has none of them, and starts anew.
Pool *pool = nullptr;
std::once_flag pool_made;

void make_pool() { pool = new Pool; }

Pool &the_pool() {
    std::call_once(pool_made, [] {
        make_pool();
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, make_pool);
#endif
    });
    return *pool;
}

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};

struct Region {
    const Work *work;
    std::atomic<int> next;
    int threads;
};

void run_region(void *data) {
    auto *region = static_cast<Region *>(data);
    for (int index; (index = region->next.fetch_add(1)) < region->threads;) (*region->work)(index);
}

}  // namespace

void use_openmp(void *function) { gomp_parallel = reinterpret_cast<GompParallel>(function); }

void run_parallel(int threads, const Work &work) {
    if (threads > 1) {
        if (GompParallel parallel = gomp_parallel.load()) {
            // Every thread takes the next index: a team that came out smaller still does all of them.
            Region region{&work, {0}, threads};
            parallel(run_region, &region, static_cast<unsigned>(threads), 0);
            return;
        }
        if (the_pool().try_run(threads, work)) return;
    }
    for (int index = 0; index < threads; ++index) work(index);
}

}  // namespace mw
