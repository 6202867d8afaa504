/* The C interface of moeworks' native library. No torch, no Python: tensors are described by mw_tensor.
 *
 * Every entry point returns 0, or -1 after it stored a message for mw_last_error(); it checks all that it is
 * given (shapes, strides, alignment, dtypes, ids) before it reads or writes any element.
 */
#ifndef MOEWORKS_H
#define MOEWORKS_H

#include <stdint.h>

#if defined(_WIN32)
#define MW_API __declspec(dllexport)
#else
#define MW_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum mw_dtype { MW_FLOAT32 = 0, MW_BFLOAT16 = 1, MW_INT64 = 2, MW_BOOL = 3, MW_INT32 = 4, MW_FLOAT64 = 5 };

enum mw_activation { MW_SWIGLU = 0, MW_GEGLU = 1, MW_RELU = 2, MW_GELU = 3, MW_RELU2 = 4 };

/* data == NULL: the tensor is absent. Strides count elements. */
typedef struct {
    void *data;
    int64_t shape[4];
    int64_t stride[4];
    int32_t ndim;
    int32_t dtype;
} mw_tensor;

/* T tokens of width D, K choices each among E experts of hidden width F; U = 2F (gate, then up) or F.
 * N = T * K rows; the assignments that an expert computes come first in `order`, sorted by expert, in token
 * order within one. Rows behind them are not written.
 */
typedef struct {
    mw_tensor x;              /* [T, D] float32 or bfloat16, the dtype of y and of the hidden rows */
    mw_tensor weights;        /* [T, K] float32 */
    mw_tensor expert_ids;     /* [T, K] int64, below num_routes; ids from E on are computed by no expert */
    mw_tensor kept;           /* [T, K] bool, optional: false was dropped */
    mw_tensor up;             /* [E, U, D] in the dtype of x or float32, the dtype of all matrices and biases */
    mw_tensor down;           /* [E, D, F] */
    mw_tensor up_bias;        /* [E, U], optional */
    mw_tensor down_bias;      /* [E, D], optional */
    mw_tensor shared_up;      /* [U', D], optional: one more expert for every token */
    mw_tensor shared_down;    /* [D, F'] */
    mw_tensor shared_weights; /* [T] float32, optional: weights of that expert; 1 without */
    int64_t num_routes;
    int32_t activation;
    int32_t weigh_input;      /* weights multiply the routed experts' input instead of their output */
    /* Results of the forward pass, inputs of the backward pass. */
    mw_tensor y;              /* [T, D]; forward only */
    mw_tensor order;          /* [N] int32: row -> token * K + slot */
    mw_tensor offsets;        /* [E + 1] int64: first row of each expert */
    mw_tensor hidden;         /* [N, U], optional: before the activation; absent, backward recomputes it */
    mw_tensor shared_hidden;  /* [T, U'], optional likewise */
} mw_experts;

/* Gradients; an absent one is not computed. */
typedef struct {
    mw_tensor y; /* [T, D], the incoming one */
    mw_tensor x;
    mw_tensor weights;
    mw_tensor up;
    mw_tensor down;
    mw_tensor up_bias;
    mw_tensor down_bias;
    mw_tensor shared_up;
    mw_tensor shared_down;
    mw_tensor shared_weights;
} mw_experts_grad;

/* The SHA-256 of this file in the build: a loader that finds the file refuses a library built from another one. */
MW_API const char *mw_interface(void);

/* sizeof of the struct with that name, 0 if there is none: a caller that mirrors the structs compares. */
MW_API int64_t mw_size_of(const char *name);

/* Why the last call of this thread failed. */
MW_API const char *mw_last_error(void);

/* The instruction set in use: avx512, avx2, neon or portable. */
MW_API const char *mw_isa(void);

/* Use another one, for tests; fails when the processor or the build lacks it. */
MW_API int mw_set_isa(const char *name);

/* Run parallel work on the team of an OpenMP library (its GOMP_parallel): the threads that torch already has.
 * NULL goes back to the library's own threads. */
MW_API void mw_use_openmp(void *gomp_parallel);

/* Large buffers from a cache that survives a step, on huge pages where the system has them. */
MW_API void *mw_allocate(int64_t bytes);
MW_API void mw_free(void *buffer);
/* Bytes that the cache holds unused. */
MW_API int64_t mw_cached_bytes(void);
/* Give them back to the system. */
MW_API void mw_release_cache(void);

MW_API int mw_experts_forward(const mw_experts *args, int32_t threads);
MW_API int mw_experts_backward(const mw_experts *args, const mw_experts_grad *grad, int32_t threads);

/* The step around the experts. Float tensors are float32 unless said otherwise; none may overlap another. */

/* ids [T, K] int64: where the K largest of each row of values [T, E] (float32 or float64) are, largest first,
 * ties to the lower index; NaN counts as the largest, -inf as the lowest finite value. */
MW_API int mw_top_k(const mw_tensor *values, const mw_tensor *ids, int32_t threads);

/* losses [T] = scale [T] * (logsumexp(row) - row[target]) of logits [T, V]; targets [T] int64. With `gradient`
 * each row of logits is overwritten with the gradient of its loss. */
MW_API int mw_cross_entropy(const mw_tensor *logits, const mw_tensor *targets, const mw_tensor *scale,
                            const mw_tensor *losses, int32_t gradient, int32_t threads);

/* y [R, D] = x * r * weight, r [R] = 1 / sqrt(mean(x^2) + eps); weight [D] optional. */
MW_API int mw_rms_norm(const mw_tensor *x, const mw_tensor *weight, double eps, const mw_tensor *y,
                       const mw_tensor *r, int32_t threads);
/* grad_x [R, D], and grad_weight [D] if it is there. */
MW_API int mw_rms_norm_backward(const mw_tensor *grad_y, const mw_tensor *x, const mw_tensor *weight,
                                const mw_tensor *r, const mw_tensor *grad_x, const mw_tensor *grad_weight,
                                int32_t threads);

/* y [R, P]: the pairs (x_i, x_{i + P/2}) of x turned by the angles of table [2, L, P/2] (cosines, sines), with
 * `inverse` backwards. Row r has position (r / repeats) % L. */
MW_API int mw_rope(const mw_tensor *x, const mw_tensor *table, int64_t repeats, int32_t inverse,
                   const mw_tensor *y, int32_t threads);

/* One tensor of an AdamW step, flat; `step` counts from 1. */
typedef struct {
    mw_tensor param, grad, exp_avg, exp_avg_sq; /* [n] */
    double lr, beta1, beta2, eps, weight_decay, step;
} mw_adamw_item;

/* Updates all of them; gradients count gradient_scale times. */
MW_API int mw_adamw(const mw_adamw_item *items, int64_t count, double gradient_scale, int32_t threads);

/* *sum = the sum of the squares of all elements of tensors, each [n]. */
MW_API int mw_sum_of_squares(const mw_tensor *tensors, int64_t count, double *sum, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
