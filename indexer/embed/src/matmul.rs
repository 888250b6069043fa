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
