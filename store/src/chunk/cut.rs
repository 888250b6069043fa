//! Content-defined cuts of a stream: FastCDC v2020, normalisation level 1, 16/64/256 KiB.
//!
//! Where a chunk ends depends on nothing but the bytes from its beginning to at most 256 KiB
//! further. So a stream is cut like the whole as long as every cut sees that far or the end.
//!
//! Invariant: the cuts do not depend on how the stream was split into windows.

use fastcdc::v2020::{Normalization, cut, select_masks};
use sluice_protocol::limits::{CHUNK_BYTES_AVG, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// Most bytes that wait for the next window: less than the longest chunk.
pub const CARRY_BYTES_MAX: usize = CHUNK_BYTES_MAX as usize;

/// Finds the ends of chunks.
#[derive(Debug, Clone, Copy)]
pub struct Cutter {
    strict: u64,
    relaxed: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        let (strict, relaxed) = select_masks(CHUNK_BYTES_AVG as usize, Normalization::Level1);
        Self { strict, relaxed }
    }
}

impl Cutter {
    /// The length of the first chunk of `bytes`, or `None` when more bytes are needed to tell.
    /// `last` says that the stream ends with `bytes`. An empty stream has no chunk.
    pub fn first(&self, bytes: &[u8], last: bool) -> Option<usize> {
        if bytes.is_empty() || (!last && bytes.len() < CHUNK_BYTES_MAX as usize) {
            return None;
        }
        let (_, len) = cut(
            bytes,
            CHUNK_BYTES_MIN as usize,
            CHUNK_BYTES_AVG as usize,
            CHUNK_BYTES_MAX as usize,
            self.strict,
            self.relaxed,
            self.strict << 1,
            self.relaxed << 1,
        );
        Some(len)
    }
}
