//! Content-defined cuts of a stream: FastCDC v2020, normalisation level 1, 16/64/256 KiB.
//!
//! Where a chunk ends depends on nothing but the bytes from its beginning to at most 256 KiB
//! further. So a stream is cut like the whole as long as every cut sees that far or the end.
//!
//! The rolling hash is a chain in which every byte waits for the one before it, so one stream of it leaves
//! most of a core idle. Its lowest 64 bits depend on the last 64 bytes alone: it can begin anywhere, 64 bytes
//! earlier. So four neighbouring stretches are rolled side by side, one and a half times as fast.
//!
//! Invariant: the cuts are those of the `fastcdc` crate, bit for bit, and do not depend on how the stream was
//! split into windows.

use std::borrow::Cow;

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};
use sluice_protocol::limits::{CHUNK_BYTES_AVG, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// Most bytes that wait for the next window: less than the longest chunk.
pub const CARRY_BYTES_MAX: usize = CHUNK_BYTES_MAX as usize;
/// Stretches that are rolled side by side.
const LANES: usize = 4;
/// Bytes of one stretch. What was rolled behind a cut is lost, so they are short.
const LANE_BYTES: usize = 2048;
/// Bytes after which the hash has forgotten what came before: each shifts it by one bit.
const MEMORY_BYTES: usize = u64::BITS as usize;

const MIN: usize = CHUNK_BYTES_MIN as usize;
const AVG: usize = CHUNK_BYTES_AVG as usize;
const MAX: usize = CHUNK_BYTES_MAX as usize;

/// Finds the ends of chunks.
#[derive(Debug, Clone)]
pub struct Cutter {
    strict: u64,
    relaxed: u64,
    gear: Cow<'static, [u64]>,
}

impl Default for Cutter {
    fn default() -> Self {
        let (strict, relaxed) = select_masks(AVG, Normalization::Level1);
        Self { strict, relaxed, gear: get_gear_with_seed(0).0 }
    }
}

impl Cutter {
    /// The length of the first chunk of `bytes`, or `None` when more bytes are needed to tell.
    /// `last` says that the stream ends with `bytes`. An empty stream has no chunk.
    pub fn first(&self, bytes: &[u8], last: bool) -> Option<usize> {
        if bytes.is_empty() || (!last && bytes.len() < MAX) {
            return None;
        }
        let end = bytes.len().min(MAX);
        if end <= MIN {
            return Some(end);
        }
        // The definition looks at bytes in pairs: a last odd one is never where a chunk ends.
        let (centre, tested) = (AVG.min(end) & !1, end & !1);
        let roll = Roll { bytes, gear: self.gear[..].try_into().expect("a byte has 256 values") };
        let cut = roll.seek(MIN, centre, self.strict).or_else(|| roll.seek(centre, tested, self.relaxed));
        Some(cut.unwrap_or(end))
    }
}

/// The rolling hash over a chunk in the making. It begins at the least length of a chunk.
struct Roll<'a> {
    bytes: &'a [u8],
    gear: &'a [u64; 256],
}

impl Roll<'_> {
    /// The first position from `at` on and below `end` at which the hash has no bit of `mask`.
    fn seek(&self, mut at: usize, end: usize, mask: u64) -> Option<usize> {
        while at + LANES * LANE_BYTES <= end {
            if let Some(found) = self.side_by_side(at, mask) {
                return Some(found);
            }
            at += LANES * LANE_BYTES;
        }
        let mut hash = self.before(at);
        (at..end).find(|i| {
            hash = self.next(hash, self.bytes[*i]);
            hash & mask == 0
        })
    }

    /// Written as it is unrolled: all lanes of a step, then the next step.
    #[allow(clippy::needless_range_loop)]
    fn side_by_side(&self, at: usize, mask: u64) -> Option<usize> {
        let mut hashes: [u64; LANES] = std::array::from_fn(|lane| self.before(at + lane * LANE_BYTES));
        let (lanes, _) = self.bytes[at..at + LANES * LANE_BYTES].as_chunks::<LANE_BYTES>();
        let lanes: &[[u8; LANE_BYTES]; LANES] = lanes.try_into().expect("so many bytes are so many lanes");
        let mut found = None;
        for i in 0..LANE_BYTES {
            for lane in 0..LANES {
                hashes[lane] = self.next(hashes[lane], lanes[lane][i]);
                if hashes[lane] & mask == 0 {
                    earlier(&mut found, at + lane * LANE_BYTES + i);
                }
            }
        }
        found
    }

    /// The hash in front of position `at`.
    fn before(&self, at: usize) -> u64 {
        let from = at.saturating_sub(MEMORY_BYTES).max(MIN);
        self.bytes[from..at].iter().fold(0, |hash, byte| self.next(hash, *byte))
    }

    #[inline(always)]
    fn next(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }
}

/// Happens once in thousands of bytes, and is kept out of the loop's registers.
#[cold]
#[inline(never)]
fn earlier(found: &mut Option<usize>, at: usize) {
    *found = Some(found.map_or(at, |f| f.min(at)));
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::cut;
    use proptest::prelude::*;

    use super::*;

    /// What the crate, which defines the cuts, does.
    fn defined(bytes: &[u8]) -> usize {
        let (strict, relaxed) = select_masks(AVG, Normalization::Level1);
        cut(bytes, MIN, AVG, MAX, strict, relaxed, strict << 1, relaxed << 1).1
    }

    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    /// Every suffix of random bytes is a stream of its own, so most places of a lane see a cut.
    #[test]
    fn cuts_are_the_defined_ones_wherever_a_stream_begins() {
        let bytes = random(1_400_000, 1);
        let cutter = Cutter::default();
        for from in (0..1_100_000).step_by(397) {
            assert_eq!(cutter.first(&bytes[from..], true), Some(defined(&bytes[from..])), "from {from}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Few different bytes make hashes that repeat: cuts lie close together, or there are none.
        #[test]
        fn cuts_are_the_defined_ones(len in 1usize..300_000, seed: u64, values in 1u8..=255, period in 1usize..200_000) {
            let mut bytes: Vec<u8> = random(period.min(len), seed).iter().map(|b| b % values).collect();
            bytes = bytes.iter().copied().cycle().take(len).collect();
            prop_assert_eq!(Cutter::default().first(&bytes, true), Some(defined(&bytes)));
        }
    }

    /// A cut right where the hash begins, where one mask gives way to the other, and where they end.
    #[test]
    fn cuts_at_the_edges_are_the_defined_ones() {
        let (cutter, noise) = (Cutter::default(), random(4 * MAX, 2));
        let ends: Vec<usize> = (MEMORY_BYTES..noise.len() - MAX).filter(|i| ends_at(&cutter, &noise, *i)).collect();
        assert!(ends.len() > 8);
        let edges = [MIN, MIN + 1, MIN + 63, MIN + 64, MIN + 65, AVG - 1, AVG, AVG + 1, MAX - 1, MAX];
        for edge in edges {
            for len in [edge, edge + 1, edge + 2, MAX, MAX + 9] {
                for end in &ends {
                    // Zeros that hold no cut, then what ends a chunk exactly at the edge.
                    let mut bytes = vec![0; MAX + 100];
                    let before = (*end).min(edge).min(100);
                    bytes[edge - before..edge + 90].copy_from_slice(&noise[end - before..end + 90]);
                    bytes.truncate(len);
                    assert_eq!(cutter.first(&bytes, true), Some(defined(&bytes)), "{edge} {len} {end}");
                }
            }
        }
    }

    fn ends_at(cutter: &Cutter, noise: &[u8], at: usize) -> bool {
        let roll = |h: u64, b: &u8| (h << 1).wrapping_add(cutter.gear[usize::from(*b)]);
        noise[at - MEMORY_BYTES..=at].iter().fold(0, roll) & cutter.relaxed == 0
    }
}
