//! Products of a block of rows with a matrix that was laid out for it once.
//!
//! A matrix of `k` by `n` lies in panels of 64 columns; a panel is `k` rows (for bfloat16 `k / 2` pairs of rows) of four
//! lines. The last panel is filled with zeros.
//!
//! Invariant: see `simd.rs`: a row's result depends on that row and the matrix alone.

use crate::simd::{self, COLUMNS, LANES, LINES, Line, ROWS, Simd, Tile};
use crate::spec::Precision;

/// A matrix of weights, ready to be multiplied with rows from the left.
pub struct Matrix {
    precision: Precision,
    inputs: usize,
    outputs: usize,
    /// Words of 32 bits in a row that is multiplied with it.
    words: usize,
    lines: Vec<[Line; LINES]>,
}

impl Matrix {
    /// Lays out weights that are given as `outputs` rows of `inputs` numbers each.
    pub fn new(precision: Precision, weights: &[&[f32]], inputs: usize) -> Self {
        let rows: Vec<&[f32]> = weights.iter().flat_map(|part| part.chunks_exact(inputs)).collect();
        let outputs = rows.len();
        let words = words(precision, inputs);
        let panels = outputs.div_ceil(COLUMNS);
        let mut lines = vec![[Line::ZERO; LINES]; panels * words];
        let mut packed = vec![0; words];
        for (output, row) in rows.into_iter().enumerate() {
            encode(precision, row, &mut packed);
            let (panel, column) = (output / COLUMNS, output % COLUMNS);
            for (k, &word) in packed.iter().enumerate() {
                lines[panel * words + k][column / LANES].0[column % LANES] = word;
            }
        }
        Self { precision, inputs, outputs, words, lines }
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Rows of `inputs` floats, ready to be multiplied; `room` is written where that takes another form.
    #[inline(always)]
    pub fn encode_rows<'a>(&self, rows: &'a [f32], room: &'a mut Vec<u32>) -> &'a [u32] {
        if self.precision == Precision::F32 {
            return simd::words(rows);
        }
        let count = rows.len() / self.inputs;
        room.resize(count * self.words, 0);
        for (row, to) in rows.chunks_exact(self.inputs).zip(room.chunks_exact_mut(self.words)) {
            encode(self.precision, row, to);
        }
        room
    }

    /// `to` becomes the product of encoded rows with this matrix, plus `bias`; row-major.
    #[inline(always)]
    pub fn multiply<S: Simd>(&self, simd: S, rows: &[u32], bias: &[f32], to: &mut [f32]) {
        debug_assert_eq!(rows.len() / self.words, to.len() / self.outputs);
        let mut tile: Tile = [[0.0; COLUMNS]; ROWS];
        for (panel, lines) in self.lines.chunks_exact(self.words).enumerate() {
            let columns = panel * COLUMNS..self.outputs.min((panel + 1) * COLUMNS);
            let bias = &bias[columns.clone()];
            for (rows, to) in rows.chunks(ROWS * self.words).zip(to.chunks_mut(ROWS * self.outputs)) {
                let rows = tile_rows(rows, self.words);
                match self.precision {
                    Precision::F32 => simd.tile::<LINES>(rows, lines, &mut tile),
                    Precision::Bf16 => simd.tile_bf16(rows, lines, &mut tile),
                }
                for (to, tile) in to.chunks_exact_mut(self.outputs).zip(&tile) {
                    for ((to, x), bias) in to[columns.clone()].iter_mut().zip(tile).zip(bias) {
                        *to = x + bias;
                    }
                }
            }
        }
    }
}

/// Up to six rows of a tile; those that it lacks repeat the first, and their products are not kept.
#[inline(always)]
fn tile_rows(rows: &[u32], words: usize) -> [&[u32]; ROWS] {
    let count = rows.len() / words;
    std::array::from_fn(|r| {
        let r = if r < count { r } else { 0 };
        &rows[r * words..(r + 1) * words]
    })
}

fn words(precision: Precision, inputs: usize) -> usize {
    match precision {
        Precision::F32 => inputs,
        Precision::Bf16 => inputs.div_ceil(2),
    }
}

#[inline(always)]
fn encode(precision: Precision, row: &[f32], to: &mut [u32]) {
    match precision {
        Precision::F32 => {
            for (x, to) in row.iter().zip(to) {
                *to = x.to_bits();
            }
        }
        Precision::Bf16 => {
            let (pairs, last) = row.as_chunks::<2>();
            for ([first, second], to) in pairs.iter().zip(to.iter_mut()) {
                *to = bf16(*first) | bf16(*second) << 16;
            }
            if let ([last], Some(to)) = (last, to.last_mut()) {
                *to = bf16(*last);
            }
        }
    }
}

/// The nearest bfloat16, the even one of two, in the low half of a word.
#[inline(always)]
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// A few columns of floats that are made and used once, like the keys of one head: panels as those of [`Matrix`], each
/// with as many lines as it needs.
#[derive(Default)]
pub struct Panels {
    inputs: usize,
    columns: usize,
    lines: Vec<Line>,
}

impl Panels {
    /// Makes room for a matrix of `inputs` by `columns`, all zeros.
    #[inline(always)]
    pub fn clear(&mut self, inputs: usize, columns: usize) {
        self.inputs = inputs;
        self.columns = columns;
        self.lines.clear();
        self.lines.resize(inputs * columns.div_ceil(LANES), Line::ZERO);
    }

    /// Lines in a row of the panel with this column, and the place of the panel's first.
    #[inline(always)]
    fn panel(&self, column: usize) -> (usize, usize) {
        let panel = column / COLUMNS;
        let width = (self.columns.div_ceil(LANES) - panel * LINES).min(LINES);
        (width, panel * LINES * self.inputs)
    }

    /// Sets a column from a row of `inputs` floats.
    #[inline(always)]
    pub fn set_column(&mut self, column: usize, values: &[f32]) {
        let (width, at) = self.panel(column);
        let line = column % COLUMNS / LANES;
        for (lines, value) in self.lines[at..].chunks_exact_mut(width).zip(values) {
            lines[line].0[column % LANES] = value.to_bits();
        }
    }

    /// Sets a row of `columns` floats.
    #[inline(always)]
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        for (part, values) in values.chunks(LANES).enumerate() {
            let (width, at) = self.panel(part * LANES);
            let line = &mut self.lines[at + row * width + part % LINES].0;
            for (to, x) in line.iter_mut().zip(values) {
                *to = x.to_bits();
            }
        }
    }

    /// Hands out the product of six rows with each panel: its first column, how many it has, and the tile.
    #[inline(always)]
    pub fn multiply<S: Simd>(&self, simd: S, rows: [&[u32]; ROWS], mut each: impl FnMut(usize, usize, &Tile)) {
        let mut tile: Tile = [[0.0; COLUMNS]; ROWS];
        for column in (0..self.columns).step_by(COLUMNS) {
            let (width, at) = self.panel(column);
            let lines = &self.lines[at..at + width * self.inputs];
            match width {
                1 => simd.tile::<1>(rows, lines.as_chunks().0, &mut tile),
                2 => simd.tile::<2>(rows, lines.as_chunks().0, &mut tile),
                3 => simd.tile::<3>(rows, lines.as_chunks().0, &mut tile),
                _ => simd.tile::<4>(rows, lines.as_chunks().0, &mut tile),
            }
            each(column, (self.columns - column).min(COLUMNS), &tile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Work};

    fn floats(count: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    struct Multiply<'a>(&'a Matrix, &'a [f32], &'a [f32]);

    impl Work for Multiply<'_> {
        type Out = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(matrix, rows, bias) = self;
            let mut room = Vec::new();
            let mut to = vec![0.0; rows.len() / matrix.inputs * matrix.outputs];
            matrix.multiply(simd, matrix.encode_rows(rows, &mut room), bias, &mut to);
            to
        }
    }

    struct MultiplyPanels<'a>(&'a Panels, &'a [f32], usize);

    impl Work for MultiplyPanels<'_> {
        type Out = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(panels, row, columns) = self;
            let mut to = vec![0.0; columns];
            panels.multiply(simd, [simd::words(row); ROWS], |at, count, tile| {
                assert!(tile.iter().all(|r| r[..count] == tile[0][..count]));
                to[at..at + count].copy_from_slice(&tile[0][..count]);
            });
            to
        }
    }

    /// A number as bfloat16 holds it.
    fn rounded(precision: Precision, x: f32) -> f64 {
        f64::from(if precision == Precision::Bf16 { f32::from_bits(bf16(x) << 16) } else { x })
    }

    #[test]
    fn every_set_of_instructions_multiplies() {
        for (rows, inputs, outputs) in
            [(1, 1, 1), (6, 16, 64), (7, 33, 65), (13, 384, 130), (2, 127, 191), (20, 64, 16)]
        {
            let (a, weights, bias) = (floats(rows * inputs, 1), floats(outputs * inputs, 2), floats(outputs, 3));
            for (isa, precision) in
                Isa::all().into_iter().flat_map(|isa| [(isa, Precision::F32), (isa, Precision::Bf16)])
            {
                let found = isa.run(Multiply(&Matrix::new(precision, &[&weights], inputs), &a, &bias));
                for (at, x) in found.iter().enumerate() {
                    let (row, column) = (at / outputs, at % outputs);
                    let pairs = a[row * inputs..][..inputs].iter().zip(&weights[column * inputs..]);
                    let exact: f64 = pairs.map(|(x, y)| rounded(precision, *x) * rounded(precision, *y)).sum();
                    let error = (f64::from(*x) - exact - f64::from(bias[column])).abs();
                    assert!(
                        error < 1e-5 * (1.0 + (inputs as f64).sqrt()),
                        "{isa:?} {precision:?} {rows} {inputs} {outputs}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn panels_multiply_by_rows_and_by_columns() {
        for (inputs, columns) in [(1, 1), (32, 17), (20, 48), (64, 64), (31, 65), (16, 200)] {
            let (row, weights) = (floats(inputs, 4), floats(inputs * columns, 5));
            let (mut by_column, mut by_row) = (Panels::default(), Panels::default());
            by_column.clear(inputs, columns);
            by_row.clear(inputs, columns);
            for (at, column) in weights.chunks_exact(inputs).enumerate() {
                by_column.set_column(at, column);
            }
            for at in 0..inputs {
                let values: Vec<f32> = weights.chunks_exact(inputs).map(|column| column[at]).collect();
                by_row.set_row(at, &values);
            }
            for isa in Isa::all() {
                let found = isa.run(MultiplyPanels(&by_column, &row, columns));
                assert_eq!(found, isa.run(MultiplyPanels(&by_row, &row, columns)));
                for (x, column) in found.iter().zip(weights.chunks_exact(inputs)) {
                    let exact: f64 = row.iter().zip(column).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    assert!((f64::from(*x) - exact).abs() < 1e-5, "{isa:?} {inputs} {columns}");
                }
            }
        }
    }

    #[test]
    fn bfloat16_is_rounded_to_even() {
        for (bits, expected) in
            [(0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81), (0xbf80_7fff, 0xbf80)]
        {
            assert_eq!(bf16(f32::from_bits(bits)), expected, "{bits:#x}");
        }
    }
}
