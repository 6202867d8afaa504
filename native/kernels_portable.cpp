// Any processor: what the compiler makes of vectors of 4 floats.
#define KERNELS kernels_portable
#define NAME "portable"
#define VECTOR 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "kernels.inl"
