//! From the rows of a text's tokens to its vector.
//!
//! Invariant: rows are added in their order, so a text's vector is the same bits in any batch.

use crate::encoder::Linear;
use crate::layout::Activation;
use crate::math;
use crate::simd::{Simd, Work};
use crate::spec::Pooling;
use crate::weights::Step;

/// Pools the rows of one text, `skip` of them at the front left out, into `to`.
pub struct Pool<'a> {
    pub pooling: Pooling,
    pub rows: &'a [f32],
    pub skip: usize,
    pub to: &'a mut [f32],
}

impl Work for Pool<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let width = self.to.len();
        let count = self.rows.len() / width;
        // A text that is all prompt is pooled whole, rather than not at all.
        let skip = if self.skip < count { self.skip } else { 0 };
        let rows = &self.rows[skip * width..];
        match self.pooling {
            Pooling::Cls => self.to.copy_from_slice(&rows[..width]),
            Pooling::LastToken => self.to.copy_from_slice(&rows[rows.len() - width..]),
            Pooling::Max => {
                self.to.copy_from_slice(&rows[..width]);
                for row in rows.chunks_exact(width) {
                    for (to, x) in self.to.iter_mut().zip(row) {
                        *to = if *x > *to { *x } else { *to };
                    }
                }
            }
            Pooling::Mean => {
                self.to.fill(0.0);
                for row in rows.chunks_exact(width) {
                    for (to, x) in self.to.iter_mut().zip(row) {
                        *to += x;
                    }
                }
                let count = (count - skip) as f32;
                for to in self.to.iter_mut() {
                    *to /= count;
                }
            }
        }
    }
}

/// Makes a vector's length one; a vector of zeros stays one.
pub struct Normalize<'a>(pub &'a mut [f32]);

impl Work for Normalize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let length = math::sum(self.0, |x| x * x).sqrt().max(1e-12);
        for x in self.0 {
            *x /= length;
        }
    }
}

/// A dense module, for one vector.
pub struct Dense<'a> {
    pub linear: &'a Linear,
    pub activation: Activation,
    pub vector: &'a [f32],
}

impl Work for Dense<'_> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Linear { matrix, bias } = self.linear;
        let mut encoded = Vec::new();
        let row = matrix.encode_rows(self.vector, &mut encoded);
        let mut out = vec![0.0; matrix.outputs()];
        matrix.multiply(simd, row, bias, &mut out);
        if self.activation == Activation::Tanh {
            for x in &mut out {
                *x = x.tanh();
            }
        }
        out
    }
}

/// Takes one vector through the modules after the pooling.
pub fn steps(isa: crate::simd::Isa, steps: &[Step], mut vector: Vec<f32>) -> Vec<f32> {
    for step in steps {
        match step {
            Step::Normalize => isa.run(Normalize(&mut vector)),
            Step::Dense(linear, activation) => {
                vector = isa.run(Dense { linear, activation: *activation, vector: &vector });
            }
        }
    }
    vector
}
