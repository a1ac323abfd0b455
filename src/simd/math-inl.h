// Vector mathematics, written once in Highway and included under each instruction set's target attributes.
// No include guard: HWY_NAMESPACE differs by includer.
#include <cstdint>
#include <limits>

#undef ATTEND_AVX512
#define ATTEND_AVX512 (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL)

namespace attend {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using Vec = hn::Vec<F32>;

constexpr int64_t kLanes = HWY_LANES(float);
inline constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// e^x for x <= 88, by 2^n 2^f with |f| <= 1/2 and a degree-5 polynomial (relative error 1.0e-7; fitted with value 1 at
// 0). The product x log2(e) rounds once, so the error grows by |x| eps / 2: below 0.4 eps of 1 absolutely for x <= 0.
// NaN stays NaN; -inf gives 0. Results below 2^-126 are 0 on AVX2 and where denormals count as zero. The reduce and scale
// instructions of AVX-512 replace five others.
HWY_INLINE Vec exp_of(Vec x) {
  const F32 d;
  const Vec t = hn::Mul(x, hn::Set(d, 1.44269504f));
#if ATTEND_AVX512
  const Vec f{_mm512_reduce_ps(t.raw, 0)}, n = hn::Sub(t, f);
#else
  const Vec n = hn::Round(t), f = hn::Sub(t, n);
#endif
  Vec p = hn::MulAdd(hn::Set(d, 0x1.5bba14p-10f), f, hn::Set(d, 0x1.3cea88p-7f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6b752p-5f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebf9bcp-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.62e42ap-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
#if ATTEND_AVX512
  return Vec{_mm512_scalef_ps(p.raw, n.raw)};
#else
  const I32 di;
#if HWY_TARGET == HWY_AVX2
  // Not hn::ConvertTo: that gives -1 << 23 for a NaN without a sign, which would make it a number.
  const hn::Vec<I32> whole{_mm256_cvtps_epi32(n.raw)};
#else
  const auto whole = hn::ConvertTo(di, n);
#endif
  const auto scaled = hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(whole));
  return hn::IfThenZeroElse(hn::Lt(t, hn::Set(d, -126.0f)), hn::BitCast(d, scaled));
#endif
}

#if ATTEND_BF16_DOT
// 2^t for weights that are rounded to 8 bits or fewer: relative error 1.0e-4, of a degree-3 polynomial over [0, 1) that
// is right at both ends.
HWY_INLINE Vec short_exp2_of(Vec t) {
  const F32 d;
  const Vec f{_mm512_reduce_ps(t.raw, _MM_FROUND_TO_NEG_INF)};
  Vec p = hn::MulAdd(hn::Set(d, 0x1.4095eap-4f), f, hn::Set(d, 0x1.cf7a66p-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.640ea8p-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return Vec{_mm512_scalef_ps(p.raw, t.raw)};
}
#endif

// tanh x: an odd polynomial (Cephes, tanhf) below 0.625, 1 - 2 / (e^2x + 1) above. Relative error 3e-7.
HWY_INLINE Vec tanh_of(Vec x) {
  const F32 d;
  const Vec a = hn::Abs(x), z = hn::Mul(x, x);
  Vec p = hn::MulAdd(hn::Set(d, -5.70498872745e-3f), z, hn::Set(d, 2.06390887954e-2f));
  p = hn::MulAdd(p, z, hn::Set(d, -5.37397155531e-2f));
  p = hn::MulAdd(p, z, hn::Set(d, 1.33314422036e-1f));
  p = hn::MulAdd(p, z, hn::Set(d, -3.33332819422e-1f));
  const Vec small = hn::MulAdd(hn::Mul(p, z), x, x);
  const Vec clamped = hn::IfThenElse(hn::Lt(a, hn::Set(d, 20.0f)), a, hn::Set(d, 20.0f));
  const Vec e = exp_of(hn::Add(clamped, clamped));
  const Vec large = hn::Sub(hn::Set(d, 1.0f), hn::Div(hn::Set(d, 2.0f), hn::Add(e, hn::Set(d, 1.0f))));
  const Vec result = hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.625f)), small, hn::CopySign(large, x));
  return hn::IfThenElse(hn::Eq(x, x), result, x);
}

HWY_INLINE float exp_of(float x) {
  return hn::GetLane(exp_of(hn::Set(F32(), x)));
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
