// What sets share whose vectors and masks have the operators of the compiler. Included by simd.h
// alone, which says what its functions do.
#pragma once

namespace mamlpp {
namespace MAMLPP_ISA {

template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) { return {a.m & b.m}; }
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) { return {a.m | b.m}; }
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) { return {a.m & ~b.m}; }

template <class T> MAMLPP_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) { return {a.v + b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) { return {a.v - b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) { return {a.v * b.v}; }
template <class T> MAMLPP_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) { return {a.v / b.v}; }

template <class T> MAMLPP_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
    return select(greater(b, a), a, b);
}
template <class T> MAMLPP_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    return select(greater(a, b), a, b);
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
