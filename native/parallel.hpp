// Running one function on several threads at once.
#pragma once

#include <functional>

namespace mw {

// Calls work(index) for index 0 .. threads - 1, the caller's own thread among them, and returns when all have
// returned. Work must not throw. With fewer threads at hand some calls run one after another, so work must not
// wait for a later index to start.
void run_parallel(int threads, const std::function<void(int)> &work);

void use_openmp(void *gomp_parallel);

}  // namespace mw
