// What a pass over the experts works on: experts, their rows, the blocks that these are cut into, and buffers.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "moeworks.h"
#include "ordered_sum.hpp"

namespace mw {

constexpr int kBlockRows = 378;       // rows of a block, a multiple of the tiles' rows
constexpr int kBlocksPerThread = 16;  // enough to share the work evenly; with fewer, blocks have half the rows
constexpr int kSpanRows = 768;        // most rows of an expert that go into its weight gradients at a time
constexpr int kSpanBytes = 8 << 20;   // and about the most memory that these rows' intermediates take
constexpr int kGradRows = 378;        // rows of a weight gradient that one task computes

inline int64_t element_size(int type) { return type == kFloat32 ? 4 : 2; }

// One expert's matrices and the rows that it computes.
struct Expert {
    int64_t first = 0, rows = 0;       // in the sorted order; of the shared expert, the tokens
    const int32_t *tokens = nullptr;   // null: row i is token i
    const float *weights = nullptr;    // null: 1
    const uint8_t *fresh = nullptr;    // see OrderedSum
    int hidden_width = 0, width = 0;   // U, F
    bool weigh_input = false;
    void *up = nullptr, *down = nullptr, *up_bias = nullptr, *down_bias = nullptr;
    void *hidden = nullptr;            // [rows, U], or null
    void *grad_up = nullptr, *grad_down = nullptr, *grad_up_bias = nullptr, *grad_down_bias = nullptr;
    bool wants_grad_weights = false;
    float *grad_weights = nullptr;     // by row

    float weight(int64_t row) const { return weights ? weights[row] : 1.0f; }
};

// Rows of one expert that one thread takes through both products.
struct Block {
    int expert;
    int64_t row;  // of the expert
    int rows;
    int span;  // of the layer
};

// A run of blocks of one expert whose intermediates are kept together in the backward pass: the whole expert, or a
// part of it, which bounds their size.
struct Span {
    int expert;
    int64_t row;
    int rows;
    int blocks;
    bool first, last;  // of the expert
};

// Everything that a pass needs besides its arguments.
struct Layer {
    const Kernels &k = kernels();
    int type, weight_type, activation;  // of the tokens and what is made of them; of matrices and biases
    int64_t tokens;
    int model_width, gated;
    const void *x;
    std::vector<Expert> experts;
    std::vector<Span> spans;  // at least one for each expert, in their order
    std::vector<Block> blocks;
    Buffer<int32_t> token_of_row;
    Buffer<float> weight_of_row;
    Buffer<uint8_t> fresh, fresh_shared;
    std::vector<int64_t> untouched;  // tokens that no row belongs to

    // An expert's matrices as right operands; _t: multiplied by their transposes.
    Right up(const Expert &e) const { return {{e.up, model_width, weight_type}, false}; }
    Right up_t(const Expert &e) const { return {{e.up, model_width, weight_type}, true}; }
    Right down(const Expert &e) const { return {{e.down, e.width, weight_type}, false}; }
    Right down_t(const Expert &e) const { return {{e.down, e.width, weight_type}, true}; }

    Matrix rows_of(const void *data, const Expert &e, int64_t row) const {
        Matrix m{data, model_width, type, e.tokens, nullptr};
        return m.from(row, 0);
    }
    Matrix inputs(const Expert &e, int64_t row) const {
        Matrix m{x, model_width, type, e.tokens, e.weigh_input ? e.weights : nullptr};
        return m.from(row, 0);
    }
};

// `grad` is null in the forward pass.
Layer describe(const mw_experts &args, const mw_experts_grad *grad, int threads);

// A thread's buffers.
struct Scratch {
    Buffer<float> left, inputs, right, act, tile, row;
    Scratch(const Layer &layer, bool backward);
};

// Hidden columns j .. j + n of a block before the activation: gate at out, up at out + up_at (if gated).
// `inputs` are the block's packed tokens; `next` is what the caller reads after it.
void hidden_chunk(const Layer &layer, const Expert &e, const float *inputs, int rows, int j, int n, float *out,
                  int64_t ld, int64_t up_at, Scratch &s, const Ahead &next);

// The result in float32: the output itself, or a buffer that finish() narrows into it. Tokens without any row are
// 0 from the start.
class Output {
  public:
    Output(const Layer &layer, const mw_tensor &target);
    float *rows() const { return sums_.get() ? sums_.get() : static_cast<float *>(target_.data); }
    void finish() const;

  private:
    const Layer &layer_;
    const mw_tensor &target_;
    Buffer<float> sums_;
};

// The blocks' results on their way into an Output.
class BlockSum {
  public:
    BlockSum(const Layer &layer, float *sum, int threads);
    OrderedSum &operator*() { return sum_; }
    OrderedSum *operator->() { return &sum_; }
    const OrderedSum *operator->() const { return &sum_; }

  private:
    Buffer<float> memory_;
    OrderedSum sum_;
};

}  // namespace mw
