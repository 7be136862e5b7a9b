/* Products of rows with a matrix, whose rows are read from beginning to end.

   A sum of products has the same order for any number of rows. Weights of one or two bytes are
   multiplied by instructions for them where the processor has those, with inputs that are packed
   as the sum of two numbers of that size: about as exact as fp32. */

#include "vectors.h"

#define ROWS 4 /* rows, outputs and partial sums of a block: its sums fit in the registers */
#define OUTPUTS 2
#define PARTS 2

enum { PACKED_BFLOAT16 = INT8 + 1, PACKED_INT8 }; /* kinds of products, besides stored types */

/* ---- blocks of unpacked inputs ---- */

/* Adds the products of `left` channels, from k on, to the sums of a block. */
INLINE void multiply(lanes sums[ROWS][OUTPUTS][PARTS], const char *x, int64_t x_stride,
                     const char *weight, int64_t w_stride, int64_t k, int64_t left,
                     const int n_rows, const int n_outputs, const int type) {
#pragma GCC unroll 2
    for (int p = 0; p < PARTS; p++, k += LANES, left -= LANES) {
        if (left <= 0) break;
        const int64_t count = least(left, LANES);
        lanes w[OUTPUTS];
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++) {
            w[o] = load(weight + o * w_stride + k * size_of(type), count, type);
        }
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            lanes states = load(x + r * x_stride + 4 * k, count, FLOAT32);
#pragma GCC unroll 2
            for (int o = 0; o < n_outputs; o++) sums[r][o][p] += states * w[o];
        }
    }
}

INLINE void block(float *y, int64_t y_stride, const char *x, int64_t x_stride, const char *weight,
                  int64_t inputs, const int n_rows, const int n_outputs, const int type) {
    const int64_t wide = PARTS * LANES, w_stride = inputs * size_of(type);
    lanes sums[ROWS][OUTPUTS][PARTS] = {0};
    int64_t k = 0;
    for (; inputs - k >= wide; k += wide)
        multiply(sums, x, x_stride, weight, w_stride, k, wide, n_rows, n_outputs, type);
    if (k < inputs)
        multiply(sums, x, x_stride, weight, w_stride, k, inputs - k, n_rows, n_outputs, type);
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++) y[r * y_stride + o] = sum(sums[r][o][0] + sums[r][o][1]);
}

/* ---- packed inputs and their blocks ---- */

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define PACKED 64 /* bytes of a vector of packed numbers */

INLINE int64_t packed_width(int64_t inputs) { return (inputs + PACKED - 1) / PACKED * PACKED; }

/* Bytes of a row: its high and its low parts; for INT8 the sums that its blocks begin with, and the
   scale. */
INLINE int64_t packed_size(int64_t inputs) { return 4 * packed_width(inputs) + 3 * PACKED; }

/* The kind of products with weights of a type, whose inputs `pack` has to pack. */
INLINE int packed_kind(int64_t type) {
    return type == BFLOAT16 ? PACKED_BFLOAT16 : type == INT8 ? PACKED_INT8 : FLOAT32;
}

static void pack_bf16(char *to, const float *x, int64_t inputs) {
    const int64_t width = packed_width(inputs);
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = inputs - i;
        lanes value = left > 0 ? load(x + i, least(left, LANES), FLOAT32) : (lanes){0};
        __m256bh high = _mm512_cvtneps_pbh((__m512)value);
        lanes rest = value - (lanes)_mm512_cvtpbh_ps(high);
        __m256bh low = _mm512_cvtneps_pbh((__m512)rest);
        memcpy(to + 2 * i, &high, sizeof high);
        memcpy(to + 2 * (width + i), &low, sizeof low);
    }
}

/* Packs x as scale (256 high + low): integers of up to 32,512, 16 bits with their sign. */
static void pack_int8(char *to, const float *x, int64_t inputs) {
    const int64_t width = packed_width(inputs);
    lanes most = {0}, total = {0};
    for (int64_t i = 0; i < inputs; i += LANES) {
        lanes value = load(x + i, least(inputs - i, LANES), FLOAT32);
        lanes size = choose(value < 0.0f, -value, value);
        most = choose(size > most, size, most);
        total += size;
    }
    float largest = 0.0f;
    for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    float scale = largest / 32512.0f;
    if (!(sum(total) <= 3.4e38f)) scale = NAN; /* reaches the logits, where it is reported */
    const float factor = largest > 0.0f ? 32512.0f / largest : 0.0f;
    ints sums[2] = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = inputs - i;
        lanes value = left > 0 ? load(x + i, least(left, LANES), FLOAT32) : (lanes){0};
        ints whole = (ints)_mm512_cvtps_epi32((__m512)(value * factor));
        ints high = (whole + 128) >> 8, low = whole - (high << 8);
        bytes parts[2] = {(bytes)_mm512_cvtepi32_epi8((__m512i)high),
                          (bytes)_mm512_cvtepi32_epi8((__m512i)low)};
        memcpy(to + i, parts, LANES);
        memcpy(to + width + i, parts + 1, LANES);
        sums[0] -= high << 7;
        sums[1] -= low << 7;
    }
    memcpy(to + 2 * width, sums, sizeof sums);
    memcpy(to + 2 * width + sizeof sums, &scale, sizeof scale);
}

static void pack(char *to, const float *x, int64_t rows, int64_t inputs, int64_t type) {
    for (int64_t r = 0; r < rows; r++, to += packed_size(inputs), x += inputs) {
        if (type == BFLOAT16) pack_bf16(to, x, inputs);
        else pack_int8(to, x, inputs);
    }
}

/* `left` bytes of a row of weights, at most 64; the rest is 0. */
INLINE __m512i weights(const char *from, int64_t left) {
    if (left >= PACKED) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, from);
}

INLINE void block_bf16(float *y, int64_t y_stride, const char *x, int64_t x_stride,
                       const char *weight, int64_t inputs, const int n_rows, const int n_outputs) {
    const int64_t low = 2 * packed_width(inputs), size = 2 * inputs;
    __m512 sums[ROWS][OUTPUTS][2] = {0};
    for (int64_t k = 0; k < size; k += PACKED) {
        __m512bh w[OUTPUTS];
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++)
            w[o] = (__m512bh)weights(weight + o * size + k, size - k);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            __m512bh high_part = (__m512bh)_mm512_loadu_si512(x + r * x_stride + k);
            __m512bh low_part = (__m512bh)_mm512_loadu_si512(x + r * x_stride + k + low);
#pragma GCC unroll 2
            for (int o = 0; o < n_outputs; o++) {
                sums[r][o][0] = _mm512_dpbf16_ps(sums[r][o][0], w[o], high_part);
                sums[r][o][1] = _mm512_dpbf16_ps(sums[r][o][1], w[o], low_part);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++)
            y[r * y_stride + o] = sum((lanes)sums[r][o][0] + (lanes)sums[r][o][1]);
}

/* The instruction multiplies unsigned by signed bytes, so 128 is added to the weights; the sums
   begin with what takes it away again. */
INLINE void block_int8(float *y, int64_t y_stride, const char *x, int64_t x_stride,
                       const char *weight, int64_t inputs, const int n_rows, const int n_outputs) {
    const int64_t low = packed_width(inputs);
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i sums[ROWS][OUTPUTS][2];
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++)
#pragma GCC unroll 2
            for (int part = 0; part < 2; part++)
                sums[r][o][part] = _mm512_loadu_si512(x + r * x_stride + 2 * low + PACKED * part);
    for (int64_t k = 0; k < inputs; k += PACKED) {
        __m512i w[OUTPUTS];
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++)
            w[o] = _mm512_xor_si512(weights(weight + o * inputs + k, inputs - k), offset);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            __m512i high_part = _mm512_loadu_si512(x + r * x_stride + k);
            __m512i low_part = _mm512_loadu_si512(x + r * x_stride + k + low);
#pragma GCC unroll 2
            for (int o = 0; o < n_outputs; o++) {
                sums[r][o][0] = _mm512_dpbusd_epi32(sums[r][o][0], w[o], high_part);
                sums[r][o][1] = _mm512_dpbusd_epi32(sums[r][o][1], w[o], low_part);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) {
        float scale;
        memcpy(&scale, x + r * x_stride + 2 * low + 2 * PACKED, sizeof scale);
#pragma GCC unroll 2
        for (int o = 0; o < n_outputs; o++) {
            lanes whole = (lanes)_mm512_cvtepi32_ps(sums[r][o][0]) * 256.0f +
                          (lanes)_mm512_cvtepi32_ps(sums[r][o][1]);
            y[r * y_stride + o] = sum(whole) * scale;
        }
    }
}
#else
INLINE int64_t packed_size(int64_t inputs) { return 0; }
INLINE int packed_kind(int64_t type) { return FLOAT32; }
static void pack(char *to, const float *x, int64_t rows, int64_t inputs, int64_t type) {}
#define block_bf16(...)
#define block_int8(...)
#endif

/* ---- any number of rows and outputs ---- */

INLINE void block_of(float *y, int64_t y_stride, const char *x, int64_t x_stride,
                     const char *weight, int64_t inputs, const int n_rows, const int n_outputs,
                     const int kind) {
    if (kind == PACKED_BFLOAT16)
        block_bf16(y, y_stride, x, x_stride, weight, inputs, n_rows, n_outputs);
    else if (kind == PACKED_INT8)
        block_int8(y, y_stride, x, x_stride, weight, inputs, n_rows, n_outputs);
    else block(y, y_stride, x, x_stride, weight, inputs, n_rows, n_outputs, kind);
}

INLINE void products_of(float *y, int64_t y_stride, const char *x, int64_t x_stride, int64_t rows,
                        const char *weight, int64_t inputs, int64_t outputs, const int kind,
                        const int64_t w_stride) {
    for (int64_t o = 0; o < outputs; o += OUTPUTS, y += OUTPUTS, weight += OUTPUTS * w_stride) {
        const int64_t some = least(outputs - o, OUTPUTS);
        int64_t r = 0;
        if (some == OUTPUTS)
            for (; rows - r >= ROWS; r += ROWS)
                block_of(y + r * y_stride, y_stride, x + r * x_stride, x_stride, weight, inputs,
                         ROWS, OUTPUTS, kind);
        for (; r < rows; r += ROWS)
            for (int64_t i = 0; i < some; i++) {
                float *to = y + r * y_stride + i;
                const char *from = x + r * x_stride, *w = weight + i * w_stride;
                const int64_t left = rows - r;
                if (left == 1) block_of(to, y_stride, from, x_stride, w, inputs, 1, 1, kind);
                else if (left == 2) block_of(to, y_stride, from, x_stride, w, inputs, 2, 1, kind);
                else if (left == 3) block_of(to, y_stride, from, x_stride, w, inputs, 3, 1, kind);
                else block_of(to, y_stride, from, x_stride, w, inputs, ROWS, 1, kind);
            }
    }
}

/* y [rows, y_stride], its first `outputs` columns = x [rows, inputs] times weight^T; a row of x has
   `x_stride` bytes. */
static void products(float *y, int64_t y_stride, const void *x, int64_t x_stride, int64_t rows,
                     const void *weight, int64_t inputs, int64_t outputs, int64_t kind) {
#define OF(kind, size) \
    products_of(y, y_stride, x, x_stride, rows, weight, inputs, outputs, kind, inputs * size)
    if (kind == FLOAT32) OF(FLOAT32, 4);
    else if (kind == BFLOAT16) OF(BFLOAT16, 2);
    else if (kind == INT8) OF(INT8, 1);
    else if (kind == PACKED_BFLOAT16) OF(PACKED_BFLOAT16, 2);
    else OF(PACKED_INT8, 1);
#undef OF
}
