// 16 bytes in the vector types of GCC and Clang, of which they make what the target has. Included
// by simd.h alone, which says what its functions do.
#pragma once

namespace mamlpp {
namespace MAMLPP_ISA {

constexpr int register_rows[] = {0, 8, 6, 4, 2};
constexpr int max_columns = 3;

template <class T> struct Vec {
    typedef T Values __attribute__((vector_size(16)));
    static constexpr int lanes = 16 / static_cast<int>(sizeof(T));
    Values v;
    static MAMLPP_INLINE Vec load(const T* p) {
        Vec x;
        __builtin_memcpy(&x.v, p, sizeof x.v);
        return x;
    }
    static MAMLPP_INLINE Vec all(T value) {
        Vec x;
        for (int i = 0; i < lanes; ++i)
            x.v[i] = value;
        return x;
    }
    MAMLPP_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }
};
template <class T> struct Mask { // all bits of a lane that is true
    using Truth = decltype(typename Vec<T>::Values() > typename Vec<T>::Values());
    Truth m;
    static MAMLPP_INLINE Mask unpack(uint16_t bits) {
        Mask x;
        for (int i = 0; i < Vec<T>::lanes; ++i)
            x.m[i] = -((bits >> i) & 1);
        return x;
    }
    MAMLPP_INLINE uint16_t pack() const {
        unsigned bits = 0;
        for (int i = 0; i < Vec<T>::lanes; ++i)
            bits |= static_cast<unsigned>(m[i] & 1) << i;
        return static_cast<uint16_t>(bits);
    }
};
template <class T> MAMLPP_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return {c.v + a.v * b.v};
}
template <class T> MAMLPP_INLINE Mask<T> greater(Vec<T> a, Vec<T> b) { return {a.v > b.v}; }
template <class T> MAMLPP_INLINE Mask<T> unordered(Vec<T> a) { return {a.v != a.v}; }
template <class T> MAMLPP_INLINE Vec<T> select(Mask<T> m, Vec<T> a, Vec<T> b) {
    using Bits = typename Mask<T>::Truth; // a cast of a vector keeps its bits
    return {(typename Vec<T>::Values)(((Bits)a.v & m.m) | ((Bits)b.v & ~m.m))};
}
template <class T> struct Lane {
    typename Mask<T>::Truth v;
};
template <class T> MAMLPP_INLINE Lane<T> lanes_at(Mask<T> bit0, Mask<T> bit1) {
    return {(bit0.m & 1) + (bit1.m & 4)};
}
template <class T> MAMLPP_INLINE Vec<T> pick(const T* p, Lane<T> lane) {
    Vec<T> x;
    for (int i = 0; i < Vec<T>::lanes; ++i)
        x.v[i] = p[lane.v[i]];
    return x;
}

} // namespace MAMLPP_ISA
} // namespace mamlpp
