// 32 registers of 16 floats: 28 sums, 2 columns of the right operand.
#define KERNELS kernels_avx512
#define NAME "avx512"
#define VECTOR 16
#define TILE_ROWS 14
#define TILE_VECTORS 2
#include "kernels.inl"
