//! What is done to a row between two matrix products, in loops that the compiler turns into vector instructions.
//!
//! Invariant: every sum is taken in sixteen lanes of fixed places, so a row's result depends on that row alone.

use crate::simd::{LANES, Simd};

/// The sum of `f` over a row.
#[inline(always)]
pub fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (parts, rest) = row.as_chunks::<LANES>();
    for part in parts {
        for l in 0..LANES {
            lanes[l] += f(part[l]);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    rest.iter().fold(lanes[0], |sum, &x| sum + f(x))
}

/// The largest number of a row; negative infinity for an empty one.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (parts, rest) = row.as_chunks::<LANES>();
    for part in parts {
        for l in 0..LANES {
            lanes[l] = larger(part[l], lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*x, *lane);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            lanes[l] = larger(lanes[l + width], lanes[l]);
        }
    }
    lanes[0]
}

/// Row becomes `(row - mean) / sqrt(variance + epsilon) * gain + shift`.
#[inline(always)]
pub fn normalize<S: Simd>(simd: S, row: &mut [f32], gain: &[f32], shift: &[f32], epsilon: f32) {
    let count = row.len() as f32;
    let mean = sum(row, |x| x) / count;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((x, gain), shift) in row.iter_mut().zip(gain).zip(shift) {
        *x = simd.fma((*x - mean) * scale, *gain, *shift);
    }
}

/// `e` to the power of `x`, for `x` of at most zero; 2 units in the last place.
#[inline(always)]
fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = simd.fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    let r = simd.fma(n, -355.0 / 512.0, x);
    let r = simd.fma(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = simd.fma(p, r, c);
    }
    // The low bits of `shifted` are n, and no others are left after the shift.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Row becomes its softmax after each number was multiplied by `scale`.
#[inline(always)]
pub fn softmax<S: Simd>(simd: S, row: &mut [f32], scale: f32) {
    let top = max(row);
    for x in row.iter_mut() {
        *x = exp(simd, (*x - top) * scale);
    }
    let inverse = 1.0 / sum(row, |x| x);
    for x in row {
        *x *= inverse;
    }
}

/// Each number becomes `x * P(normal < x)`: the exact GELU, with an error function that is within 5e-7.
#[inline(always)]
pub fn gelu<S: Simd>(simd: S, row: &mut [f32]) {
    // A quotient of polynomials in z², fitted to erf(z) / z for |z| <= 3.93, where erf is 1 to the last bit of a float.
    const ABOVE: [f32; 6] =
        [2.027_042e-6, 2.875_025e-4, 3.884_188_8e-3, 5.310_782e-2, 1.931_777_5e-1, std::f32::consts::FRAC_2_SQRT_PI];
    const BELOW: [f32; 6] = [3.799_251e-5, 1.191_352_3e-3, 1.520_414_7e-2, 1.152_489_6e-1, 5.045_308_7e-1, 1.0];
    for x in row {
        let z = (*x * std::f32::consts::FRAC_1_SQRT_2).clamp(-3.93, 3.93);
        let t = z * z;
        let (mut above, mut below) = (ABOVE[0], BELOW[0]);
        for i in 1..6 {
            above = simd.fma(above, t, ABOVE[i]);
            below = simd.fma(below, t, BELOW[i]);
        }
        let half = 0.5 * *x;
        *x = simd.fma(half, z * above / below, half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Portable, Work};

    /// The exact GELU by a series, in 64 bits.
    fn exact_gelu(x: f64) -> f64 {
        let z = x / std::f64::consts::SQRT_2;
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
    }

    struct Gelu<'a>(&'a mut [f32]);

    impl Work for Gelu<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            gelu(simd, self.0);
        }
    }

    #[test]
    fn gelu_is_the_exact_one() {
        let inputs: Vec<f32> = (-600..=600).map(|i| i as f32 / 100.0).chain([-100.0, 100.0, 0.0]).collect();
        for isa in Isa::all() {
            let mut found = inputs.clone();
            isa.run(Gelu(&mut found));
            for (x, y) in inputs.iter().zip(found) {
                let expected = if x.abs() > 50.0 { f64::from(x.max(0.0)) } else { exact_gelu(f64::from(*x)) };
                let error = (f64::from(y) - expected).abs();
                assert!(error < 2e-6 * f64::from(x.abs()).max(1.0), "{isa:?}: gelu({x}) is {y}, not {expected}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_units() {
        for i in 0..87_000 {
            let x = -(i as f32) / 1000.0;
            let (found, expected) = (f64::from(exp(Portable, x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 4e-7, "exp({x}) is {found}, not {expected}");
        }
        assert!(exp(Portable, f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn rows_of_any_length_are_summed() {
        for length in 0..70 {
            let row: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(sum(&row, |x| x), (length * (length - 1).max(0) / 2) as f32);
            assert_eq!(max(&row), if length == 0 { f32::NEG_INFINITY } else { (length - 1) as f32 });
        }
    }

    #[test]
    fn softmax_sums_to_one() {
        let mut row: Vec<f32> = (0..37).map(|i| i as f32 * 3.0 - 50.0).collect();
        softmax(Portable, &mut row, 0.5);
        assert!((sum(&row, |x| x) - 1.0).abs() < 1e-6 && row.windows(2).all(|w| w[0] < w[1]));
    }
}
