/* Vectors of 16 floats, of any compiler that has gcc's extension: loads of stored types, sums,
   activations. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef int16_t signed_halves __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

enum { FLOAT32, BFLOAT16, INT8 };
enum { SILU, GELU_TANH, GELU, RELU };

INLINE int64_t size_of(int type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* LANES values as floats. */
INLINE lanes load_all(const void *from, const int type) {
    lanes floats;
    halves shorts;
    bytes small;
    if (type == FLOAT32) {
        memcpy(&floats, from, sizeof floats);
        return floats;
    }
#ifdef __AVX512F__ /* gcc's own conversions take several times as long */
    if (type == BFLOAT16)
        return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
#endif
    if (type == BFLOAT16) {
        memcpy(&shorts, from, sizeof shorts);
        return (lanes)(__builtin_convertvector(shorts, ints) << 16);
    }
    memcpy(&small, from, sizeof small);
    return __builtin_convertvector(
        __builtin_convertvector(__builtin_convertvector(small, signed_halves), ints), lanes);
}

/* `count` values, at most LANES, as floats; the rest is 0. */
INLINE lanes load(const void *from, int64_t count, const int type) {
    if (count == LANES) return load_all(from, type);
    char padded[4 * LANES] = {0};
    memcpy(padded, from, count * size_of(type));
    return load_all(padded, type);
}

INLINE void store(float *to, lanes values, int64_t count) {
    if (count == LANES) memcpy(to, &values, sizeof values);
    else memcpy(to, &values, 4 * count);
}

INLINE float sum(lanes values) {
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    union { lanes all; eight half[2]; } a = {values};
    union { eight all; four half[2]; } b = {a.half[0] + a.half[1]};
    four c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

INLINE lanes choose(ints when, lanes a, lanes b) {
    return (lanes)((when & (ints)a) | (~when & (ints)b));
}

/* e^x with a relative error of about 1e-7: 2^n times a polynomial of the rest. */
INLINE lanes exponential(lanes x) {
    x = choose(x > 88.0f, (lanes){0} + 88.0f, x); /* NaN stays NaN */
    x = choose(x < -87.0f, (lanes){0} - 87.0f, x);
    lanes shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    ints n = (ints)shifted - 0x4B400000;
    lanes whole = shifted - 12582912.0f;
    lanes r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (lanes)((n + 127) << 23);
}

INLINE lanes activated(lanes x, const int activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == RELU) return choose(x < 0.0f, (lanes){0}, x);
    if (activation == GELU_TANH) { /* x (1 + tanh u) / 2 = x / (1 + e^(-2u)) */
        lanes u = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * u));
    }
    lanes result;
    for (int i = 0; i < LANES; i++) result[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
    return result;
}
