// The torsion formula of csrc/torsions.hpp and its gradient, shared by csrc/torsions.cpp and csrc/schnet.cpp, and the
// Fourier series of one torsion.
// S is a number, or a number with its derivative along a direction (Dual in torsions.cpp).
#pragma once
#include <cmath>

#include "torsions.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

DIFFMD_INLINE float square_root(float x) { return std::sqrt(x); }
DIFFMD_INLINE double square_root(double x) { return std::sqrt(x); }
template <typename T> DIFFMD_INLINE T inverse(T x) { return T(1) / x; }

template <typename S> struct Vector {
  S x, y, z;
};
template <typename S> DIFFMD_INLINE Vector<S> operator+(Vector<S> a, Vector<S> b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <typename S> DIFFMD_INLINE Vector<S> operator*(S s, Vector<S> a) { return {s * a.x, s * a.y, s * a.z}; }
template <typename S> DIFFMD_INLINE S dot(Vector<S> a, Vector<S> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <typename S> DIFFMD_INLINE Vector<S> cross(Vector<S> a, Vector<S> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <typename S> struct Angle {
  Vector<S> n1, n2;
  S length, volume, over_norm, sine, cosine;
};

// Of the three bond vectors a->b, b->c, c->d; T is where the two floors are added.
template <typename T, typename S> DIFFMD_INLINE Angle<S> angle_of(Vector<S> b1, Vector<S> b2, Vector<S> b3) {
  Angle<S> angle;
  angle.n1 = cross(b1, b2);
  angle.n2 = cross(b2, b3);
  angle.length = square_root(dot(b2, b2) + T(kTorsionLengthFloor));
  angle.volume = dot(b1, angle.n2);
  const S x = dot(angle.n1, angle.n2), y = angle.length * angle.volume;
  angle.over_norm = inverse(square_root(x * x + y * y + T(kTorsionAreaFloor)));
  angle.sine = y * angle.over_norm;
  angle.cosine = x * angle.over_norm;
  return angle;
}

template <typename S> struct Bonds {
  Vector<S> b1, b2, b3;
};

// Gradient with respect to the three bonds of grad_sine * sine + grad_cosine * cosine.
template <typename S>
DIFFMD_INLINE Bonds<S> gradient_of(const Angle<S>& angle, const Bonds<S>& bonds, S grad_sine, S grad_cosine) {
  const S along = grad_sine * angle.sine + grad_cosine * angle.cosine;
  const S grad_x = angle.over_norm * (grad_cosine - along * angle.cosine);
  const S grad_y = angle.over_norm * (grad_sine - along * angle.sine);
  const S grad_volume = grad_y * angle.length;
  const Vector<S> grad_n1 = grad_x * angle.n2;
  const Vector<S> grad_n2 = grad_x * angle.n1 + grad_volume * bonds.b1;
  const S grad_length = grad_y * angle.volume * inverse(angle.length);
  return {grad_volume * angle.n2 + cross(bonds.b2, grad_n1),
          grad_length * bonds.b2 + cross(grad_n1, bonds.b1) + cross(bonds.b3, grad_n2), cross(grad_n2, bonds.b2)};
}

template <typename T> struct TorsionSeries {
  T energy, by_sine, by_cosine;
};

// sum over n = 1 .. n_harmonics of a_n sin(n phi) + b_n cos(n phi), coefficients (a_n, b_n) one after another, and its
// derivatives by sine and cosine: Horner's rule for the real part of sum (b_n - i a_n) z^n with z = cosine + i sine.
// Straight angles, where |z| falls to 0, take it smoothly to 0.
template <typename T>
DIFFMD_INLINE TorsionSeries<T> torsion_series(const T* coefficients, std::int64_t n_harmonics, T sine, T cosine) {
  T real = T(0), imaginary = T(0), real_slope = T(0), imaginary_slope = T(0);
  for (std::int64_t n = n_harmonics; n >= 0; --n) {
    const T a = n > 0 ? coefficients[2 * n - 2] : T(0), b = n > 0 ? coefficients[2 * n - 1] : T(0);
    const T slope = real_slope * cosine - imaginary_slope * sine + real;
    imaginary_slope = real_slope * sine + imaginary_slope * cosine + imaginary;
    real_slope = slope;
    const T value = real * cosine - imaginary * sine + b;
    imaginary = real * sine + imaginary * cosine - a;
    real = value;
  }
  return {real, -imaginary_slope, real_slope};
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
