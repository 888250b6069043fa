//! Compression on the wire, where it pays: on lines that are slower than compressing, for bytes that become fewer by it.
//!
//! The sender decides for each piece. It begins by compressing, which costs a fast line a fraction of a second, and stops
//! where the line turns out to carry more than [`FAST_BYTES_PER_S`] on one connection. Bytes that look like noise, or did
//! not become fewer, are left alone for a while.
//!
//! Invariant: what comes out is what went in, or an error; and no more memory is taken than the announced length, which is
//! bounded before.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// A connection that carries more than this is not worth compressing for. Level 1 packs some 400 MB/s of what packs well on
/// one core, both ends have other work, and a site has four connections.
const FAST_BYTES_PER_S: u64 = 40_000_000;
/// Below this there is time for the higher level.
const SLOW_BYTES_PER_S: u64 = 4_000_000;
/// Levels of zstd.
const LEVEL: i32 = 1;
/// See [`LEVEL`].
const LEVEL_SLOW: i32 = 3;
/// How long the line is measured at a time.
const MEASURED: Duration = Duration::from_millis(250);
/// After a pause of this length the measuring begins anew.
const PAUSE: Duration = Duration::from_secs(1);
/// Fewer bytes are not packed.
const BYTES_MIN: usize = 1024;
/// A packed piece is taken when it has at most this many of 100 bytes.
const WORTH: usize = 92;
/// Pieces that go as they are after one that did not become fewer.
const REST: u32 = 16;
/// What is looked at of a piece to guess whether it packs.
const PROBES: usize = 8;
/// Bytes of each look.
const PROBE_BYTES: usize = 1024;
/// Bits in a byte of what is not worth packing.
const NOISE_BITS: f64 = 7.5;

/// How fast one connection is, and what packing brought on it.
#[derive(Debug, Default)]
pub(super) struct Gauge(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the present measuring began, the last time that something was sent, and how much since the beginning.
    run: Option<(Instant, Instant, u64)>,
    rate: Option<u64>,
    rests: u32,
}

/// What goes out at once.
#[derive(Debug)]
pub(super) struct Piece {
    pub bytes: Bytes,
    /// Its length before it was packed; none when it was not.
    pub raw: Option<usize>,
}

impl Gauge {
    /// So many bytes were taken by the line.
    pub fn sent(&self, bytes: u64) {
        self.sent_at(bytes, Instant::now());
    }

    fn sent_at(&self, bytes: u64, now: Instant) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        s.run = match s.run {
            Some((began, last, sum)) if now.saturating_duration_since(last) < PAUSE => {
                let (took, sum) = (now.saturating_duration_since(began), sum + bytes);
                if took < MEASURED {
                    Some((began, now, sum))
                } else {
                    s.rate = Some((sum as f64 / took.as_secs_f64()) as u64);
                    Some((now, now, 0))
                }
            }
            _ => Some((now, now, 0)),
        };
    }

    /// The level to pack the next piece with; none when it goes as it is.
    fn level(&self) -> Option<i32> {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match s.rate {
            Some(rate) if rate > FAST_BYTES_PER_S => return None,
            _ if s.rests > 0 => s.rests -= 1,
            Some(rate) if rate < SLOW_BYTES_PER_S => return Some(LEVEL_SLOW),
            _ => return Some(LEVEL),
        }
        None
    }

    fn rest(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rests = REST;
    }

    /// The piece as it goes out.
    pub fn pack(&self, bytes: Bytes) -> Piece {
        let Some(level) = (bytes.len() >= BYTES_MIN).then(|| self.level()).flatten() else {
            return Piece { bytes, raw: None };
        };
        if !is_noise(&bytes)
            && let Ok(packed) = zstd::bulk::compress(&bytes, level)
            && packed.len() * 100 <= bytes.len() * WORTH
        {
            return Piece { raw: Some(bytes.len()), bytes: packed.into() };
        }
        self.rest();
        Piece { bytes, raw: None }
    }
}

/// What was packed, `raw` bytes long.
pub(super) fn unpack(packed: &[u8], raw: usize) -> io::Result<Bytes> {
    let bytes = zstd::bulk::decompress(packed, raw)?;
    if bytes.len() == raw { Ok(bytes.into()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
}

/// Whether bytes are spread so evenly that packing them is a waste: what is compressed or encrypted already, and hashes.
fn is_noise(bytes: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let mut seen = 0u32;
    let step = (bytes.len() / PROBES).max(1);
    for probe in bytes.chunks(step).take(PROBES) {
        let probe = &probe[..probe.len().min(PROBE_BYTES)];
        seen += probe.len() as u32;
        probe.iter().for_each(|b| counts[usize::from(*b)] += 1);
    }
    let bits = |count: u32| {
        let p = f64::from(count) / f64::from(seen);
        -p * p.log2()
    };
    counts.into_iter().filter(|c| *c > 0).map(bits).sum::<f64>() > NOISE_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Bytes {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes.into()
    }

    fn text(len: usize) -> Bytes {
        (0..).flat_map(|i: u32| format!("{i},acme,{}\n", i * 7).into_bytes()).take(len).collect()
    }

    #[test]
    fn text_is_packed_and_noise_is_not() {
        let gauge = Gauge::default();
        let piece = gauge.pack(text(200_000));
        assert_eq!(piece.raw, Some(200_000));
        assert!(piece.bytes.len() < 100_000);
        assert_eq!(unpack(&piece.bytes, 200_000).unwrap(), text(200_000));
        assert!(gauge.pack(noise(200_000)).raw.is_none());
        for _ in 0..REST {
            assert!(gauge.pack(text(200_000)).raw.is_none(), "after noise it rests");
        }
        assert!(gauge.pack(text(200_000)).raw.is_some());
        assert!(gauge.pack(text(100)).raw.is_none());
    }

    #[test]
    fn a_fast_line_gets_its_bytes_as_they_are() {
        let (gauge, start) = (Gauge::default(), Instant::now());
        let mut at = start;
        let mut run = |bytes: u64| {
            for _ in 0..4 {
                gauge.sent_at(bytes, at);
                at += Duration::from_millis(100);
            }
            gauge.level()
        };
        assert_eq!(run(10_000_000), None);
        assert_eq!(run(1_000_000), Some(LEVEL));
        assert_eq!(run(10_000), Some(LEVEL_SLOW));
        assert_eq!(run(10_000_000), None);
        // A pause is no slowness.
        gauge.sent_at(1, at + Duration::from_secs(100));
        gauge.sent_at(1, at + Duration::from_secs(100));
        assert_eq!(gauge.level(), None);
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        let piece = Gauge::default().pack(text(50_000));
        assert!(unpack(&piece.bytes, 49_999).is_err() && unpack(&piece.bytes, 50_001).is_err());
        // A frame that would become a gigabyte takes no more than was announced.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(bomb.len() < 10_000 && unpack(&bomb, 1 << 20).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_safely(bytes in prop::collection::vec(any::<u8>(), 0..2000), raw in 0usize..100_000) {
            if let Ok(out) = unpack(&bytes, raw) {
                prop_assert_eq!(out.len(), raw);
            }
        }
    }
}
