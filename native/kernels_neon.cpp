// 32 registers of 4 floats: 24 sums, 3 columns of the right operand.
#define KERNELS kernels_neon
#define NAME "neon"
#define VECTOR 4
#define TILE_ROWS 8
#define TILE_VECTORS 3
#include "kernels.inl"
