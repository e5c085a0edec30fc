/* Vectors of float32 as wide as the processor has them, and the functions of them that the other files use.
 *
 * The files of this folder are one program: they are compiled together, in the order of their numbers. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* the same, anywhere in memory */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t loose_int __attribute__((may_alias)); /* the bits of a number */
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#ifdef __AVX512F__
static inline vec splat(float x) { return (vec)_mm512_set1_ps(x); }
#elif defined(__AVX__)
static inline vec splat(float x) { return (vec)_mm256_set1_ps(x); }
#else
static inline vec splat(float x) { return (vec){} + x; }
#endif
static inline ivec splat_int(int32_t x) { return (ivec){} + x; }
static inline vec load(const float *p) { return *(const loose *)p; }
static inline void store(float *p, vec x) { *(loose *)p = x; }

/* a * b + c, rounded once where the processor can. Written out: left to the compiler, one unrolled loop would have it and
 * another not, and a row's bits would depend on its place in the tile. */
static inline vec mul_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* x, in a register from here on: the compiler would rather read it again from memory for each use. */
static inline vec in_register(vec x) {
#if defined(__AVX__) && !defined(__AVX512F__)
    asm("" : "+x"(x));
#endif
    return x;
}

static inline vec choose(ivec where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }

/* b where a is not a number, as in a > b ? a : b. Written out, since the compiler makes three instructions of it. */
static inline vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

static inline vec smaller(vec a, vec b) { return -larger(-a, -b); }

static inline float sum(vec x) {
    const union { vec whole; quad part[LANES / 4]; } all = {x};
    quad q = all.part[0] + all.part[1];
    for (int i = 2; i < LANES / 4; i++) q += all.part[i];
    return (q[0] + q[2]) + (q[1] + q[3]);
}

static inline float highest(vec x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

static inline int any(ivec x) {
    int32_t all = 0;
    for (int i = 0; i < LANES; i++) all |= x[i];
    return all != 0;
}

/* exp(x) for x <= 88; not a number stays so. Cephes' polynomial, 2 units in the last place. */
static inline vec exponential(vec x) {
    const vec magic = splat(12582912.0f);
    x = larger(splat(-87.0f), x);
    const vec shifted = mul_add(x, splat(1.44269504f), magic);
    const vec n = shifted - magic;
    const vec r = mul_add(n, splat(2.12194440e-4f), mul_add(n, splat(-0.693359375f), x));
    vec p = splat(1.9875691500e-4f);
    p = mul_add(p, r, splat(1.3981999507e-3f));
    p = mul_add(p, r, splat(8.3334519073e-3f));
    p = mul_add(p, r, splat(4.1665795894e-2f));
    p = mul_add(p, r, splat(1.6666665459e-1f));
    p = mul_add(p, r, splat(5.0000001201e-1f));
    p = mul_add(p * r, r, r) + 1.0f;
    const ivec exponent = ((ivec)shifted - (ivec)magic + 127) << 23;
    return p * (vec)exponent;
}

/* softcap * tanh(x / softcap), by tanh(x) = 1 - 2 / (exp(2 x) + 1); beyond 40 it is 1 in float32 */
static inline vec capped(vec x, float softcap) {
    const vec twice = x * (2.0f / softcap);
    return softcap * (1.0f - 2.0f / (exponential(smaller(splat(80.0f), twice)) + 1.0f));
}
