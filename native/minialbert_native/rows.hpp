// Vectors of 16 floats: products of tiles of rows with panels of columns, and functions of rows.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;  // floats of a vector
constexpr int PANEL = 3;   // vectors of columns that a product computes at once
constexpr int TILE = 8;    // rows that it computes at once

inline int rounded_up(int value, int step) { return (value + step - 1) / step * step; }

// sum += a b, of which a are uint8 and b int8, in fours. GCC 12 copies and spills registers around the intrinsic.
inline void add_products(__m512i& sum, __m512i a, __m512i b) {
#ifdef __GNUC__
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = _mm512_dpbusd_epi32(sum, a, b);
#endif
}

template <int R, int Z>
inline void product_int8(const int8_t* a, size_t stride, const uint8_t* panel, int groups, const int32_t* sums,
                         const float* row_scales, const float* scales, const float* bias, float* out,
                         size_t out_stride) {
  __m512i acc[R][Z];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) acc[r][z] = _mm512_set1_epi32(-128 * sums[r]);
  for (int k = 0; k < groups; k++) {
    __m512i w[Z];
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) w[z] = _mm512_load_si512(panel + (size_t(k) * Z + z) * 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      int32_t four;
      std::memcpy(&four, a + r * stride + 4 * k, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 3
      for (int z = 0; z < Z; z++) add_products(acc[r][z], w[z], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) {
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + z * LANES), _mm512_set1_ps(row_scales[r]));
      const __m512 shift = bias ? _mm512_loadu_ps(bias + z * LANES) : _mm512_setzero_ps();
      _mm512_storeu_ps(out + r * out_stride + z * LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][z]), scale, shift));
    }
}

// out = scale * a w + bias, of which a and w are fp32; w has `next` floats from one input to the next.
template <int R, int Z>
inline void product_fp32(const float* a, size_t stride, const float* w, size_t next, int inputs, float scale,
                         const float* bias, float* out, size_t out_stride) {
  __m512 acc[R][Z];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) acc[r][z] = _mm512_setzero_ps();
  for (int k = 0; k < inputs; k++) {
    __m512 b[Z];
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) b[z] = _mm512_loadu_ps(w + k * next + z * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512 x = _mm512_set1_ps(a[r * stride + k]);
#pragma GCC unroll 3
      for (int z = 0; z < Z; z++) acc[r][z] = _mm512_fmadd_ps(x, b[z], acc[r][z]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int z = 0; z < Z; z++) {
      const __m512 shift = bias ? _mm512_loadu_ps(bias + z * LANES) : _mm512_setzero_ps();
      _mm512_storeu_ps(out + r * out_stride + z * LANES, _mm512_fmadd_ps(acc[r][z], _mm512_set1_ps(scale), shift));
    }
}

// Call f.template operator()<R, Z>(first row) for rows in tiles of about equal size.
template <int Z, typename F>
inline void tiles(int rows, F f) {
  const int count = (rows + TILE - 1) / TILE;
  for (int tile = 0; tile < count; tile++) {
    const int first = rows * tile / count, size = rows * (tile + 1) / count - first;
    switch (size) {
      case 1:
        f.template operator()<1, Z>(first);
        break;
      case 2:
        f.template operator()<2, Z>(first);
        break;
      case 3:
        f.template operator()<3, Z>(first);
        break;
      case 4:
        f.template operator()<4, Z>(first);
        break;
      case 5:
        f.template operator()<5, Z>(first);
        break;
      case 6:
        f.template operator()<6, Z>(first);
        break;
      case 7:
        f.template operator()<7, Z>(first);
        break;
      default:
        f.template operator()<8, Z>(first);
    }
  }
}

template <typename F>
inline void tiles(int rows, int vectors, F f) {
  if (vectors == 1)
    tiles<1>(rows, f);
  else if (vectors == 2)
    tiles<2>(rows, f);
  else
    tiles<3>(rows, f);
}

// Of two values, of which one is no number, the processor's largest and least are the second: here x, so that it shows.
inline __m512 exponential(__m512 x) {  // relative error below 2e-7, for x of at most 0
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// x (1 + erf(x / sqrt 2)) / 2, as max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, of which erfc is the exponential of a
// polynomial that was fitted to its logarithm between 0 and 5.5: within 3e-7.
inline __m512 gelu(__m512 x) {
  const __m512 size = _mm512_abs_ps(x), z = _mm512_min_ps(_mm512_set1_ps(5.5f), size);
  __m512 p = _mm512_set1_ps(-2.965802650578553e-06f);
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(8.871083991834894e-06f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.000399104377720505f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-0.005316981580108404f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.03670114651322365f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.3181850016117096f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.797900378704071f));
  const __m512 tail = exponential(_mm512_fnmadd_ps(p, z, _mm512_setzero_ps()));
  const __m512 half = _mm512_mul_ps(z, _mm512_set1_ps(-0.5f));  // beyond 5.5 nothing counts
  return _mm512_fmadd_ps(half, tail, _mm512_max_ps(_mm512_setzero_ps(), x));
}

inline __m512 tangent(__m512 x) {  // tanh, by e^(-2|x|)
  const __m512 size = _mm512_abs_ps(x), one = _mm512_set1_ps(1.0f);
  const __m512 e = exponential(_mm512_mul_ps(size, _mm512_set1_ps(-2.0f)));
  const __m512 positive = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_sub_ps(positive, negative, _mm512_setzero_ps(), positive);
}

inline __m512 positive(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }

template <typename F>
inline void each(const float* a, float* out, size_t count, F f) {  // of buffers that are padded to whole vectors
  for (size_t i = 0; i < count; i += LANES) _mm512_storeu_ps(out + i, f(_mm512_loadu_ps(a + i)));
}

// Round a row to int8 by its largest value, which is at least `least`; return its sum, and its scale by `scale`.
inline int32_t quantize(const float* a, int width, int padded, float least, int8_t* out, float* scale) {
  __m512i most = _mm512_setzero_si512();  // by bits, which are in order, and of what is no number the largest
  for (int i = 0; i < width; i += LANES) {
    const __mmask16 kept = width - i >= LANES ? 0xffff : (1u << (width - i)) - 1;
    most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(_mm512_maskz_loadu_ps(kept, a + i))));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  largest = std::max(largest + 1.17549435e-38f, least);
  *scale = largest;
  const __m512 factor = _mm512_set1_ps(127.0f / largest);
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < padded; i += LANES) {
    const int left = width - i;
    const __mmask16 kept = left >= LANES ? 0xffff : left <= 0 ? 0 : (1u << left) - 1;
    const __m512 shares = _mm512_mul_ps(_mm512_maskz_loadu_ps(kept, a + i), factor);
    const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(shares), _mm512_set1_epi32(-128));  // of no number
    sum = _mm512_add_epi32(sum, q);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtsepi32_epi8(q));
  }
  return _mm512_reduce_add_epi32(sum);
}

inline void normalize(const float* a, const float* gain, const float* bias, float epsilon, int width, float* out) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(a + i));  // padding is zero
  const float mean = _mm512_reduce_add_ps(sum) / width;
  __m512 squares = _mm512_setzero_ps();
  const __m512 means = _mm512_set1_ps(mean);
  for (int i = 0; i < width; i += LANES) {
    const __mmask16 kept = width - i >= LANES ? 0xffff : (1u << (width - i)) - 1;
    const __m512 d = _mm512_maskz_sub_ps(kept, _mm512_loadu_ps(a + i), means);
    squares = _mm512_fmadd_ps(d, d, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + epsilon));
  for (int i = 0; i < width; i += LANES) {
    const __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(a + i), means), factor);
    _mm512_storeu_ps(out + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(gain + i), _mm512_loadu_ps(bias + i)));
  }
}

inline void shift(const float* a, const float* factors, const float* shifts, int width, float* out) {
  for (int i = 0; i < width; i += LANES) {
    __m512 x = _mm512_loadu_ps(a + i);
    if (factors) x = _mm512_mul_ps(x, _mm512_loadu_ps(factors + i));
    if (shifts) x = _mm512_add_ps(x, _mm512_loadu_ps(shifts + i));
    _mm512_storeu_ps(out + i, x);
  }
}

inline void add(const float* a, const float* b, size_t count, float* out) {
  for (size_t i = 0; i < count; i += LANES)
    _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i)));
}

inline void to_unit_length(const float* a, int width, float least, float* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < width; i += LANES)
    squares = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(a + i), squares);
  const __m512 size = _mm512_set1_ps(std::max(std::sqrt(_mm512_reduce_add_ps(squares)), least));
  for (int i = 0; i < width; i += LANES) _mm512_storeu_ps(out + i, _mm512_div_ps(_mm512_loadu_ps(a + i), size));
}

}  // namespace
