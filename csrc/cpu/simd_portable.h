// Loops over 4 floats, of which the compiler makes what it can. Included by simd.h alone, which
// says what its functions do.
#pragma once

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int register_rows[] = {0, 8, 6, 4, 2};
constexpr int max_columns = 3;

template <class T> struct Vec {
    static constexpr int lanes = 4;
    T v[lanes];
    static MAMLPP_INLINE Vec load(const T* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static MAMLPP_INLINE Vec all(T x) { return {{x, x, x, x}}; }
    MAMLPP_INLINE void store(T* p) const {
        for (int i = 0; i < lanes; ++i)
            p[i] = v[i];
    }
};
template <class T> struct Mask {
    uint16_t m;
    static MAMLPP_INLINE Mask none() { return {0}; }
    static MAMLPP_INLINE Mask unpack(uint16_t bits) { return {bits}; }
    MAMLPP_INLINE uint16_t pack() const { return m; }
};
template <class T> MAMLPP_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m & b.m)};
}
template <class T> MAMLPP_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m | b.m)};
}
template <class T> MAMLPP_INLINE Mask<T> without(Mask<T> a, Mask<T> b) {
    return {static_cast<uint16_t>(a.m & ~b.m)};
}
template <class T> MAMLPP_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] += b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] -= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] *= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        c.v[i] += a.v[i] * b.v[i];
    return c;
}
template <class T> MAMLPP_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] /= b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
template <class T> MAMLPP_INLINE Mask<T> greater(Vec<T> a, Vec<T> b) {
    unsigned m = 0;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        m |= static_cast<unsigned>(a.v[i] > b.v[i]) << i;
    return {static_cast<uint16_t>(m)};
}
template <class T> MAMLPP_INLINE Mask<T> unordered(Vec<T> a) {
    unsigned m = 0;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        m |= static_cast<unsigned>(a.v[i] != a.v[i]) << i;
    return {static_cast<uint16_t>(m)};
}
template <class T> MAMLPP_INLINE Vec<T> select(Mask<T> m, Vec<T> a, Vec<T> b) {
    for (int i = 0; i < Vec<T>::lanes; ++i)
        a.v[i] = (m.m >> i) & 1 ? a.v[i] : b.v[i];
    return a;
}
template <class T> struct Lane {
    int v[Vec<T>::lanes];
};
template <class T> MAMLPP_INLINE Lane<T> lanes_at(Mask<T> bit0, Mask<T> bit1) {
    Lane<T> lane;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        lane.v[i] = ((bit0.m >> i) & 1) + 4 * ((bit1.m >> i) & 1);
    return lane;
}
template <class T> MAMLPP_INLINE Vec<T> pick(const T* p, Lane<T> lane) {
    Vec<T> result;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        result.v[i] = p[lane.v[i]];
    return result;
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
