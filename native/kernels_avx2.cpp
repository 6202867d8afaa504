// 16 registers of 8 floats: 12 sums, 2 columns of the right operand.
#define KERNELS kernels_avx2
#define NAME "avx2"
#define VECTOR 8
#define TILE_ROWS 6
#define TILE_VECTORS 2
#include "kernels.inl"
