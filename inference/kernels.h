// The arithmetic of the engine, one table per kind of kernel and a row per instruction set. The tables drive dispatch,
// tests and benchmarks. Kernels take plain pointers, allocate nothing, do not throw; no pointer need be aligned.
#pragma once

#include <cstdint>

#include "format/dtype.h"
#include "format/span.h"
#include "inference/isa.h"

namespace qat {

// What can be done with one stored row of a matrix. cols is a multiple of the type's block size.
struct RowKernel {
  DType type;
  Isa isa;
  // out[cols]: the floats the row means, bit for bit those of decode_rows (format/grid.h).
  void (*decode)(const uint8_t* row, int64_t cols, float* out);
  // Sum over cols of decode(row)[k] * x[k].
  float (*dot)(const uint8_t* row, const float* x, int64_t cols);
};
Span<const RowKernel> row_kernels();
const RowKernel* find_row_kernel(DType type, Isa isa);  // nullptr: the engine does not run this type
bool runs_type(DType type);
const char* runnable_types();  // "F32, F16, BF16, Q2_0, Q4_0, Q8_0, Q6_K", for messages

// What can be done with a row of packed codes of a channel-wise grid (format/channel_grid.h): I2, I4, I8. cols is any;
// nothing behind the row is read.
struct ChannelKernel {
  DType type;
  Isa isa;
  // out[k] = code[k] * scale, bit for bit decode_packed's.
  void (*decode)(const uint8_t* row, int64_t cols, float scale, float* out);
  // scale * sum over cols of code[k] * x[k].
  float (*dot)(const uint8_t* row, int64_t cols, float scale, const float* x);
  // Integer products of `outputs` rows, w_stride bytes apart, with `rows` (1 or 2) rows of 8-bit activations, each as
  // arrange() left it, arranged_bytes(cols) apart: sums[o * rows + r]. cols <= kMostCodes, or a sum may not fit.
  void (*multiply)(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* arranged, int64_t rows,
                   int64_t cols, int32_t* sums);
  // Codes of activations in the order in which multiply() wants them, and what else it needs of them.
  void (*arrange)(const int8_t* codes, int64_t cols, int8_t* out);
};
constexpr int64_t kCodeRows = 2;
constexpr int64_t kMostCodes = (int64_t{1} << 17) - 1;
constexpr int64_t arranged_bytes(int64_t cols) { return (cols + 127) / 128 * 128 + 64; }
Span<const ChannelKernel> channel_kernels();
const ChannelKernel* find_channel_kernel(DType type, Isa isa);  // nullptr: no channel-wise type

// A row of activations rounded to 8 bits, kCodeBlock neighbours to a scale: x = code * scale, codes -127..127. It is
// GGUF's Q8_0 with a scale of 32 bits.
constexpr int64_t kCodeBlock = 32;
struct CodedRow {
  const int8_t* codes;     // [cols]
  const float* scales;     // [cols / kCodeBlock]; NaN for a block that held NaN or infinity, whose codes are 0
  const float* sums;       // [cols / kCodeBlock]: scale * the sum of the block's codes
  const float* half_sums;  // [cols / 16]: the same of 16 codes
};

// Products of stored rows of blocks (Q2_0, Q4_0, Q8_0, Q6_K) with such a row of activations: codes meet codes, in
// integers, and a block's sum its two scales.
struct BlockKernel {
  DType type;
  Isa isa;
  // y[o] of `outputs` rows, `stride` bytes apart. What comes out for a row does not depend on the others.
  void (*multiply)(const uint8_t* w, int64_t stride, int64_t outputs, const CodedRow& x, int64_t cols, float* y);
  // The codes of activations in the order in which multiply() wants them, and what else it needs of them:
  // arranged_block_bytes(cols). nullptr: as they are.
  void (*arrange)(const int8_t* codes, int64_t cols, int8_t* out);
};
constexpr int64_t arranged_block_bytes(int64_t cols) { return (cols + 511) / 512 * 576; }
Span<const BlockKernel> block_kernels();
const BlockKernel* find_block_kernel(DType type, Isa isa);  // nullptr: floats meet this type

// ---- Many rows of activations in 8 bits with many rows of weights. As with floats below, the lanes of a vector are
// rows of activations, packed in panels; here four columns of a row stand side by side: codes[(k / 4 * width + r) * 4 +
// k % 4], which PanelKernel::pack makes of rows of codes seen as rows of 32-bit words.

// Columns of weights unpacked at a time; a multiple of every block.
constexpr int64_t kCodeDepth = 512;
// Rows of weights, a multiple of what a kernel multiplies at a time.
constexpr int64_t kCodeOutputs = 64;

// Rows of activations in a panel, of codes or (below) of floats: the most that any kernel has.
constexpr int64_t kMostPanelRows = 32;

struct CodePanel {
  const int8_t* codes;  // [ceil(cols / 4), width, 4]; missing rows and columns are 0
  int64_t width;        // rows rounded up to kLanes, at most the kernel's panel_rows
  const float* scales;  // [cols / kCodeBlock, width]; unused where the weights have one scale per row
  const float* sums;    // [cols / 16, width]: scale * the sum of 16 codes
};

struct CodePanelKernel {
  DType type;
  Isa isa;
  // Rows of a panel but the last, the same for all types of an instruction set; at most kMostPanelRows.
  int64_t panel_rows;
  // Weights have a scale for every `group` columns (16 or 32), or, 0, one for the row: then sums are integers.
  int64_t group;
  // Bytes per code once unpacked, one or two. What they hold is between unpack and multiply.
  int64_t planes;
  // What unpacked codes stand above those that they mean: value = (code - offset) * scale.
  int32_t offset;
  // Columns [0, cols) of a row, cols <= kCodeDepth: planes * kCodeDepth bytes of codes, and a scale per group. Up to
  // the next multiple of kCodeBlock codes may be anything.
  void (*unpack)(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales);
  // sums[o * stride + r] += products over `cols` columns of a panel, from its first column on (the panel's pointers are
  // moved there), for o < outputs, r < width: floats, offset and scales applied, or int32 of the bare codes. Row o at
  // codes + o * planes * kCodeDepth, scales + o * kCodeDepth / 16. Up to the next multiple of 8 of outputs is computed
  // too.
  void (*multiply)(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                   void* sums, int64_t stride);
};
Span<const CodePanelKernel> code_panel_kernels();
const CodePanelKernel* find_code_panel_kernel(DType type, Isa isa);

// What all types share.
struct CodeKernels {
  Isa isa;
  // x[n] as a CodedRow, and sums of 16 as a CodePanel wants them; n is a multiple of kCodeBlock.
  void (*encode_blocks)(const float* x, int64_t n, int8_t* codes, float* scales, float* sums, float* half_sums);
  // code = clamp(round(x / scale), -128, 127), ties to even, bit for bit encode_channel's (format/channel_grid.h).
  // False, and no codes, if some x is NaN.
  bool (*encode_static)(const float* x, int64_t n, float scale, int8_t* codes);
  // y[r * y_stride + o] = sums[o * stride + r] for r < rows, o < outputs.
  void (*store_floats)(const float* sums, int64_t stride, int64_t rows, int64_t outputs, float* y, int64_t y_stride);
  // y = (sums - offset * x_sums[r]) * (x_scales[r] * w_scales[o]), the products in double.
  void (*store_sums)(const int32_t* sums, int64_t stride, int64_t rows, int64_t outputs, int32_t offset,
                     const int32_t* x_sums, const double* x_scales, const float* w_scales, float* y, int64_t y_stride);
};
const CodeKernels* find_code_kernels(Isa isa);  // nullptr for scalar: the reference meets floats

// Products of many rows of activations with many rows of weights: y[r, o] (+)= sum_k x[r, k] * w[o, k].
// The activations are packed once into panels of up to `rows` rows, in multiples of kLanes, stored column by
// column; so the lanes of a vector are rows and each y is one chain of multiply-adds over k, whatever the shape of the
// rest. Missing rows of the last panel are zero.
struct PanelKernel {
  Isa isa;
  int64_t rows;  // of a panel but the last; at most kMostPanelRows
  // x: rows of `stride` floats apart. panel[k * width + r], width = rows rounded up to kLanes.
  void (*pack)(const float* x, int64_t stride, int64_t rows, int64_t cols, float* panel);
  // w: row o at w + o * w_stride, `depth` floats used. Writes y[r * y_stride + o] for r < rows, o < outputs; with
  // `add`, adds.
  void (*multiply)(const float* panel, int64_t rows, int64_t depth, const float* w, int64_t w_stride, int64_t outputs,
                   float* y, int64_t y_stride, bool add);
};
constexpr int64_t kLanes = 8;
// multiply() reads (never uses) weight rows up to the next multiple of this.
constexpr int64_t kOutputStep = 8;
const PanelKernel* find_panel_kernel(Isa isa);  // nullptr for scalar: the reference multiplies row by row

// Of scores that became a softmax: the largest, and the sum of e^(score - largest).
struct SoftmaxSum {
  float largest = -__builtin_inff(), sum = 0.0f;  // of no score
};

// Operations on vectors of floats. In and out may be the same memory.
struct VectorKernels {
  Isa isa;
  // out = x / sqrt(mean(x^2) + eps) * weight; weight == nullptr: no weight.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*gelu_multiply)(float* gate, const float* x, int64_t n);  // gate = gelu_tanh(gate) * x
  void (*silu_multiply)(float* gate, const float* x, int64_t n);  // gate = silu(gate) * x
  void (*softcap)(float* x, int64_t n, float cap);                // x = cap * tanh(x / cap)
  float (*max)(const float* x, int64_t n);                        // n >= 1; any element if some are NaN
  // x = clamp(round(x / scale), -128, 127) * scale, bit for bit round_activations (format/channel_grid.h).
  void (*round_to_grid)(float* x, int64_t n, float scale);
  // Sum of exp(x - shift); in double, the terms are float.
  double (*sum_exp)(const float* x, int64_t n, float shift);
  // n >= 1. While it computes, memory brings as many bytes as x has of what is met after it, from `next` on.
  SoftmaxSum (*softmax)(float* x, int64_t n, const void* next);
  // KL divergence of q from p, where log p = base - base_lse and log q = x - lse: the sum of p * (log p - log q) over
  // the tokens with log p > -16, as llama-perplexity has it.
  double (*kl)(const float* base, float base_lse, const float* x, float lse, int64_t n);
  // out[n]: codes of 4 bits in pairs as CachedRows has them; n is a multiple of kPairedCodes.
  void (*decode_pairs)(const uint8_t* data, int64_t n, float* out);
};
const VectorKernels& vector_kernels(Isa isa);

// Keys or values of consecutive positions, as the cache stores them: floats of 32 or 16 bits, blocks of Q8_0, or packed
// codes.
struct CachedRows {
  const uint8_t* data = nullptr;  // row j at data + j * stride
  int64_t stride = 0;             // bytes
  int64_t count = 0;              // >= 1
  int64_t cols = 0;               // of all types but F32 a multiple of 8, of Q8_0 and I4 of 32
};

// Codes of 4 bits lie in the cache as a vector unpacks them with least ado, in pairs: of each 32 columns byte n has
// column n in its lower half and column 16 + n in its upper half, both in two's complement.
constexpr int64_t kPairedCodes = 32;

// Attention of heads h that share keys or values. Codes are met without their scale, and times `unit`, a power of two;
// whoever calls divides by it. What comes out for a head, or of a position, does not depend on the others, nor on
// whether codes or the floats of that value are stored.
struct CacheKernel {
  DType type;
  Isa isa;
  float unit;
  // out[h * out_stride + j] = scale * q[h * q_stride ..] . k[j]
  void (*scores)(const float* q, int64_t q_stride, int64_t heads, const CachedRows& k, float scale, float* out,
                 int64_t out_stride);
  // out[h * out_stride + i] (+)= sum over j of weights[h * weight_stride + j] * v[j][i]
  void (*mix)(const float* weights, int64_t weight_stride, int64_t heads, const CachedRows& v, bool add, float* out,
              int64_t out_stride);
};
Span<const CacheKernel> cache_kernels();
const CacheKernel* find_cache_kernel(DType type, Isa isa);  // nullptr: to be decoded to F32, which every ISA has

// Keys in Q8_0 are kept in groups of consecutive positions, which the lanes of a vector then are: [cols / 32,
// kKeyGroup] float16 scales, then [cols / 4, kKeyGroup, 4] codes -127..127. They meet queries in 8 bits, in integers,
// as llama.cpp has it.
constexpr int64_t kKeyGroup = 16;
constexpr int64_t key_group_bytes(int64_t cols) { return kKeyGroup * (cols + cols / 16); }
struct KeyGroups {
  const uint8_t* data = nullptr;  // group g at data + g * stride
  int64_t stride = 0;             // bytes: key_group_bytes(cols)
  int64_t cols = 0;
  int64_t first = 0, last = 0;  // first <= j < last are met, counted from the first position of that group
};
struct CodedQueries {   // of `heads` that share keys
  const int8_t* codes;  // [heads, cols], -127..127
  const float* scales;  // [heads, cols / kCodeBlock]
  const int32_t* sums;  // [heads, cols / kCodeBlock]: of a block's codes
};
struct KeyKernel {
  Isa isa;
  // out[h * out_stride + j - keys.first] = scale * q[h] . key[j]. Nothing else is written.
  void (*scores)(const CodedQueries& q, int64_t heads, const KeyGroups& keys, float scale, float* out,
                 int64_t out_stride);
};
Span<const KeyKernel> key_kernels();
const KeyKernel* find_key_kernel(Isa isa);  // every ISA has one

}  // namespace qat
