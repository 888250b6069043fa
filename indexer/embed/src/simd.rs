//! The instructions that this machine has, and the inner loop of a matrix product in each of them.
//!
//! This is the only module with unsafe code. It holds two kinds of it: calls of functions that need instructions
//! which were looked for at run time ([`Isa::detect`] is the only way to an [`Isa`] beside [`Isa::portable`]), and loads
//! and stores of whole registers in arrays of exactly that size. What can be wrong in them is compared with
//! [`Portable`], which is plain Rust, by the tests of `matmul.rs`.
//!
//! Invariant: an element of a product is summed up over `k` in ascending order whatever its tile, its row and the
//! number of rows, so a row's result does not depend on its neighbours.
#![allow(unsafe_code)]

/// Rows of a tile.
pub const ROWS: usize = 6;
/// Numbers in a line, which is as long as a cache line.
pub const LANES: usize = 16;
/// Lines in a full tile's row.
pub const LINES: usize = 4;
/// Columns of a full tile.
pub const COLUMNS: usize = LANES * LINES;

/// Sixteen times 32 bits: floats, or pairs of bfloat16 with the first in the low half.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; LANES]);

impl Line {
    pub const ZERO: Self = Self([0; LANES]);
}

/// The bits of floats.
pub fn words(floats: &[f32]) -> &[u32] {
    // SAFETY: both types have the same size and alignment, and neither has bits that the other may not have.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

/// What a tile's products are written to.
pub type Tile = [[f32; COLUMNS]; ROWS];

/// One set of instructions.
pub trait Simd: Copy + Send + Sync {
    /// `a * b + c`, rounded once where the machine can.
    fn fma(self, a: f32, b: f32, c: f32) -> f32;
    /// The first `16 * V` columns of `to` become the product of six rows with a panel. All rows are as long as the panel.
    fn tile<const V: usize>(self, rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile);
    /// The same for rows and panels of pairs of bfloat16.
    fn tile_bf16(self, rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile);
}

/// Work that is compiled once for each set of instructions; `run` must be `#[inline(always)]`.
pub trait Work {
    type Out;
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// A set of instructions that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

impl Isa {
    /// The best set that this machine has.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// All sets that this machine has, the best first.
    pub fn all() -> Vec<Self> {
        let mut found = vec![Set::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 {
                found.push(Set::Avx2);
            }
            if avx512 {
                found.push(Set::Avx512);
            }
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                found.push(Set::Avx512Bf16);
            }
        }
        found.into_iter().rev().map(Self).collect()
    }

    /// Whether products of bfloat16 are faster here than those of floats.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Set::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Does the work with these instructions.
    pub fn run<W: Work>(self, work: W) -> W::Out {
        match self.0 {
            Set::Portable => work.run(Portable),
            // SAFETY: `all` makes these values only where the machine has the instructions.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86::with_avx2(work) },
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { x86::with_avx512(work) },
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => unsafe { x86::with_avx512_bf16(work) },
        }
    }
}

/// Plain Rust; on aarch64 that has fused products, elsewhere it has not.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn tile<const V: usize>(self, rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile) {
        lanes_tile(self, rows, panel, to);
    }

    #[inline(always)]
    fn tile_bf16(self, rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile) {
        lanes_tile_bf16(self, rows, panel, to);
    }
}

/// A tile, one line of columns after the other, in what the compiler makes of loops over lanes.
#[inline(always)]
fn lanes_tile<S: Simd, const V: usize>(simd: S, rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile) {
    let rows = rows.map(|row| &row[..panel.len()]);
    for v in 0..V {
        let mut sums = [[0f32; LANES]; ROWS];
        for (k, lines) in panel.iter().enumerate() {
            let line = &lines[v].0;
            for r in 0..ROWS {
                let a = f32::from_bits(rows[r][k]);
                for l in 0..LANES {
                    sums[r][l] = simd.fma(a, f32::from_bits(line[l]), sums[r][l]);
                }
            }
        }
        for (row, sums) in to.iter_mut().zip(&sums) {
            row[v * LANES..(v + 1) * LANES].copy_from_slice(sums);
        }
    }
}

#[inline(always)]
fn lanes_tile_bf16<S: Simd>(simd: S, rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile) {
    let rows = rows.map(|row| &row[..panel.len()]);
    let (low, high) = (|x: u32| f32::from_bits(x << 16), |x: u32| f32::from_bits(x & 0xffff_0000));
    for v in 0..LINES {
        let mut sums = [[0f32; LANES]; ROWS];
        for (k, lines) in panel.iter().enumerate() {
            let line = &lines[v].0;
            for r in 0..ROWS {
                let (first, second) = (low(rows[r][k]), high(rows[r][k]));
                for l in 0..LANES {
                    sums[r][l] = simd.fma(first, low(line[l]), simd.fma(second, high(line[l]), sums[r][l]));
                }
            }
        }
        for (row, sums) in to.iter_mut().zip(&sums) {
            row[v * LANES..(v + 1) * LANES].copy_from_slice(sums);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, LINES, Line, ROWS, Simd, Tile, Work, lanes_tile, lanes_tile_bf16};

    /// Instructions up to AVX2 and FMA. Only [`with_avx2`] makes one.
    #[derive(Clone, Copy)]
    pub struct Avx2(());
    /// AVX-512 with its foundation, byte, doubleword and length parts; and bfloat16 if so said.
    #[derive(Clone, Copy)]
    pub struct Avx512<const BF16: bool>(());

    #[target_feature(enable = "avx2,fma")]
    pub fn with_avx2<W: Work>(work: W) -> W::Out {
        work.run(Avx2(()))
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn with_avx512<W: Work>(work: W) -> W::Out {
        work.run(Avx512::<false>(()))
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn with_avx512_bf16<W: Work>(work: W) -> W::Out {
        work.run(Avx512::<true>(()))
    }

    impl Simd for Avx2 {
        #[inline(always)]
        fn fma(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn tile<const V: usize>(self, rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile) {
            lanes_tile(self, rows, panel, to);
        }

        #[inline(always)]
        fn tile_bf16(self, rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile) {
            lanes_tile_bf16(self, rows, panel, to);
        }
    }

    impl<const BF16: bool> Simd for Avx512<BF16> {
        #[inline(always)]
        fn fma(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn tile<const V: usize>(self, rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile) {
            // SAFETY: `with_avx512` and `with_avx512_bf16`, which alone make this value, need these instructions.
            unsafe { tile(rows, panel, to) }
        }

        #[inline(always)]
        fn tile_bf16(self, rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile) {
            if BF16 {
                // SAFETY: `with_avx512_bf16`, which alone makes this value, needs these instructions.
                unsafe { tile_bf16(rows, panel, to) }
            } else {
                lanes_tile_bf16(self, rows, panel, to);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn tile<const V: usize>(rows: [&[u32]; ROWS], panel: &[[Line; V]], to: &mut Tile) {
        // Pointers, because checks of bounds between the products cost the registers that the sums are in.
        let rows: [*const u32; ROWS] = rows.map(|row| row[..panel.len()].as_ptr());
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for (k, lines) in panel.iter().enumerate() {
            // SAFETY: a line is 64 aligned bytes.
            let lines: [__m512; V] = std::array::from_fn(|v| unsafe { _mm512_load_ps(lines[v].0.as_ptr().cast()) });
            for r in 0..ROWS {
                // SAFETY: `k` is less than the length of the panel, which each row was cut to above.
                let a = _mm512_set1_ps(f32::from_bits(unsafe { *rows[r].add(k) }));
                for v in 0..V {
                    sums[r][v] = _mm512_fmadd_ps(a, lines[v], sums[r][v]);
                }
            }
        }
        store(&sums, to);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tile_bf16(rows: [&[u32]; ROWS], panel: &[[Line; LINES]], to: &mut Tile) {
        let rows: [*const u32; ROWS] = rows.map(|row| row[..panel.len()].as_ptr());
        let mut sums = [[_mm512_setzero_ps(); LINES]; ROWS];
        for (k, lines) in panel.iter().enumerate() {
            // SAFETY: a line is 64 aligned bytes; `__m512bh` is any 64 bytes.
            let lines: [__m512bh; LINES] = std::array::from_fn(|v| unsafe {
                std::mem::transmute::<__m512i, __m512bh>(_mm512_load_si512(lines[v].0.as_ptr().cast()))
            });
            for r in 0..ROWS {
                // SAFETY: `k` is less than the length of the panel, which each row was cut to above.
                let a = _mm512_set1_epi32(unsafe { *rows[r].add(k) }.cast_signed());
                // SAFETY: both are 64 bytes of any value.
                let a: __m512bh = unsafe { std::mem::transmute(a) };
                for v in 0..LINES {
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], a, lines[v]);
                }
            }
        }
        store(&sums, to);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<const V: usize>(sums: &[[__m512; V]; ROWS], to: &mut Tile) {
        for (sums, to) in sums.iter().zip(to) {
            for (sum, to) in sums.iter().zip(to.as_chunks_mut::<LANES>().0) {
                // SAFETY: `to` has room for sixteen floats; the store needs no alignment.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *sum) }
            }
        }
    }
}
