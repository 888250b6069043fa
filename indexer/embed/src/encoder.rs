//! The packed encoder: the tokens of many texts as rows one after the other, without padding.
//!
//! A layer is done in two sweeps over blocks of rows, which the threads share: the first makes queries, keys and values
//! of all rows; the second takes each block through attention and the feed-forward part while it lies in the cache.
//!
//! Invariant: a row reads only rows of its own text, and every step is done row by row, so a text's result is the same
//! bits in any batch, in any order and on any number of threads.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::limits::BLOCK_ROWS;
use crate::math;
use crate::matmul::{Matrix, Panels};
use crate::simd::{Isa, ROWS, Simd, Work, words};

/// A matrix and what is added to its products.
pub struct Linear {
    pub matrix: Matrix,
    pub bias: Vec<f32>,
}

/// Gain and shift of a normalisation.
pub struct Norm {
    pub gain: Vec<f32>,
    pub shift: Vec<f32>,
}

pub struct Layer {
    /// Queries, keys and values side by side.
    pub qkv: Linear,
    pub out: Linear,
    pub attention_norm: Norm,
    pub up: Linear,
    pub down: Linear,
    pub output_norm: Norm,
}

/// The weights of a BERT or XLM-RoBERTa encoder.
pub struct Encoder {
    pub isa: Isa,
    pub hidden: usize,
    pub heads: usize,
    pub epsilon: f32,
    /// The position of a text's first token: 0, or for XLM-RoBERTa the padding token's number plus one.
    pub first_position: u32,
    /// Row-major tables, each row as long as `hidden`. The type of all tokens is the first.
    pub words: Vec<f32>,
    pub positions: Vec<f32>,
    pub token_type: Vec<f32>,
    pub embedding_norm: Norm,
    pub layers: Vec<Layer>,
}

/// Room that a thread works in, kept between calls.
#[derive(Default)]
struct Room {
    encoded: Vec<u32>,
    context: Vec<f32>,
    wide: Vec<f32>,
    scores: Vec<f32>,
    keys: Panels,
    values: Panels,
}

/// The rows of one batch and what the threads need for it; kept between batches.
#[derive(Default)]
pub struct Buffers {
    /// The result: one row of `hidden` floats for each token.
    pub rows: Vec<f32>,
    qkv: Vec<f32>,
    rooms: Mutex<Vec<Room>>,
}

impl Buffers {
    fn with_room<T>(rooms: &Mutex<Vec<Room>>, work: impl FnOnce(&mut Room) -> T) -> T {
        let lock = || rooms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut room = lock().pop().unwrap_or_default();
        let out = work(&mut room);
        lock().push(room);
        out
    }
}

impl Encoder {
    /// Encodes texts, given as the numbers of their tokens; fills `buffers.rows` in the same order.
    /// To be called within the pool of threads that shall do it.
    pub fn encode(&self, texts: &[&[u32]], buffers: &mut Buffers) {
        let width = self.hidden;
        let spans = spans(texts);
        let count = spans.last().map_or(0, |s| s.end);
        let block = block_rows(count, rayon::current_num_threads());
        let Buffers { rows, qkv, rooms } = buffers;
        rows.resize(count * width, 0.0);
        qkv.resize(count * width * 3, 0.0);
        let places: Vec<(u32, u32)> =
            texts.iter().flat_map(|text| text.iter().copied().zip(self.first_position..)).collect();
        rows.par_chunks_mut(block * width).zip(places.par_chunks(block)).for_each(|(rows, places)| {
            self.isa.run(Lookup { encoder: self, places, rows });
        });
        for layer in &self.layers {
            rows.par_chunks(block * width).zip(qkv.par_chunks_mut(block * width * 3)).for_each(|(rows, qkv)| {
                Buffers::with_room(rooms, |room| self.isa.run(Project { layer, rows, qkv, room }));
            });
            let qkv = &qkv[..];
            rows.par_chunks_mut(block * width).enumerate().for_each(|(at, rows)| {
                let first = at * block;
                Buffers::with_room(rooms, |room| {
                    self.isa.run(Finish { encoder: self, layer, spans: &spans, qkv, first, rows, room });
                });
            });
        }
    }
}

/// Rows in a block: whole tiles, and so many that every thread gets as many blocks as the others.
fn block_rows(rows: usize, threads: usize) -> usize {
    let blocks = threads * rows.div_ceil(threads * BLOCK_ROWS).max(1);
    rows.div_ceil(blocks).max(1).next_multiple_of(ROWS)
}

/// Where each text's rows lie.
pub fn spans(texts: &[&[u32]]) -> Vec<Range<usize>> {
    let mut end = 0;
    let mut next = |text: &&[u32]| {
        end += text.len();
        end - text.len()..end
    };
    texts.iter().map(&mut next).collect()
}

/// First rows: the token's, its position's and the type's vector, normalised.
struct Lookup<'a> {
    encoder: &'a Encoder,
    /// The token's number and its position.
    places: &'a [(u32, u32)],
    rows: &'a mut [f32],
}

impl Work for Lookup<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let e = self.encoder;
        let row_of = |table: &'_ [f32], at: u32| -> Range<usize> {
            let from = at as usize * e.hidden;
            debug_assert!(from < table.len());
            from..from + e.hidden
        };
        for (row, &(token, position)) in self.rows.chunks_exact_mut(e.hidden).zip(self.places) {
            let word = &e.words[row_of(&e.words, token)];
            let place = &e.positions[row_of(&e.positions, position)];
            for (((x, word), place), kind) in row.iter_mut().zip(word).zip(place).zip(&e.token_type) {
                *x = word + kind + place;
            }
            math::normalize(simd, row, &e.embedding_norm.gain, &e.embedding_norm.shift, e.epsilon);
        }
    }
}

/// The first sweep of a layer.
struct Project<'a> {
    layer: &'a Layer,
    rows: &'a [f32],
    qkv: &'a mut [f32],
    room: &'a mut Room,
}

impl Work for Project<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Linear { matrix, bias } = &self.layer.qkv;
        let rows = matrix.encode_rows(self.rows, &mut self.room.encoded);
        matrix.multiply(simd, rows, bias, self.qkv);
    }
}

/// The second sweep of a layer, for the block of rows that begins at `first`.
struct Finish<'a> {
    encoder: &'a Encoder,
    layer: &'a Layer,
    spans: &'a [Range<usize>],
    qkv: &'a [f32],
    first: usize,
    rows: &'a mut [f32],
    room: &'a mut Room,
}

impl Work for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { encoder, layer, spans, qkv, first, rows, room } = self;
        let width = encoder.hidden;
        let block = first..first + rows.len() / width;
        room.context.resize(rows.len(), 0.0);
        let from = spans.partition_point(|span| span.end <= block.start);
        for span in spans[from..].iter().take_while(|span| span.start < block.end) {
            let queries = span.start.max(block.start)..span.end.min(block.end);
            for head in 0..encoder.heads {
                attend(simd, encoder, qkv, span, &queries, head, first, room);
            }
        }
        let Room { encoded, context, wide, .. } = room;
        add_product(simd, &layer.out, context, rows, encoded, wide);
        normalize_rows(simd, rows, &layer.attention_norm, encoder);

        let up = layer.up.matrix.encode_rows(rows, encoded);
        context.resize(rows.len() / width * layer.up.matrix.outputs(), 0.0);
        layer.up.matrix.multiply(simd, up, &layer.up.bias, context);
        math::gelu(simd, context);
        add_product(simd, &layer.down, context, rows, encoded, wide);
        normalize_rows(simd, rows, &layer.output_norm, encoder);
    }
}

/// Adds the product of `from` with a matrix to `rows`.
#[inline(always)]
fn add_product<S: Simd>(
    simd: S,
    linear: &Linear,
    from: &[f32],
    rows: &mut [f32],
    encoded: &mut Vec<u32>,
    product: &mut Vec<f32>,
) {
    let from = linear.matrix.encode_rows(from, encoded);
    product.resize(rows.len(), 0.0);
    linear.matrix.multiply(simd, from, &linear.bias, product);
    for (x, y) in rows.iter_mut().zip(product) {
        *x += *y;
    }
}

#[inline(always)]
fn normalize_rows<S: Simd>(simd: S, rows: &mut [f32], norm: &Norm, encoder: &Encoder) {
    for row in rows.chunks_exact_mut(encoder.hidden) {
        math::normalize(simd, row, &norm.gain, &norm.shift, encoder.epsilon);
    }
}

/// One head's attention of some rows of a text to all rows of it; writes the head's part of `room.context`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn attend<S: Simd>(
    simd: S,
    encoder: &Encoder,
    qkv: &[f32],
    span: &Range<usize>,
    queries: &Range<usize>,
    head: usize,
    first: usize,
    room: &mut Room,
) {
    let (width, size) = (encoder.hidden, encoder.hidden / encoder.heads);
    // `part` 0, 1, 2: the query, key and value of a row.
    let at = |row: usize, part: usize| {
        let from = row * width * 3 + part * width + head * size;
        from..from + size
    };
    let Room { context, scores, keys, values, .. } = room;
    let length = span.len();
    keys.clear(size, length);
    values.clear(length, size);
    for (i, r) in span.clone().enumerate() {
        keys.set_column(i, &qkv[at(r, 1)]);
        values.set_row(i, &qkv[at(r, 2)]);
    }
    let scale = 1.0 / (size as f32).sqrt();
    scores.resize(ROWS * length, 0.0);
    for start in queries.clone().step_by(ROWS) {
        let count = ROWS.min(queries.end - start);
        let queries = std::array::from_fn(|r| words(&qkv[at(start + if r < count { r } else { 0 }, 0)]));
        keys.multiply(simd, queries, |column, columns, tile| {
            for (r, tile) in tile.iter().enumerate().take(count) {
                scores[r * length + column..][..columns].copy_from_slice(&tile[..columns]);
            }
        });
        for row in scores.chunks_exact_mut(length).take(count) {
            math::softmax(simd, row, scale);
        }
        let scores = std::array::from_fn(|r| words(&scores[r * length..(r + 1) * length]));
        values.multiply(simd, scores, |column, columns, tile| {
            for (r, tile) in tile.iter().enumerate().take(count) {
                let to = (start + r - first) * width + head * size + column;
                context[to..to + columns].copy_from_slice(&tile[..columns]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_shared_evenly() {
        for (rows, threads, expected) in [(1, 2, 6), (12, 2, 6), (13, 2, 12), (96, 1, 96), (1024, 2, 90), (4096, 1, 96)]
        {
            assert_eq!(block_rows(rows, threads), expected, "{rows} rows, {threads} threads");
        }
        for rows in 1..5000 {
            let block = block_rows(rows, 4);
            assert!(block.is_multiple_of(ROWS) && block <= BLOCK_ROWS, "{rows}");
        }
    }
}
