//! Compression on the wire, where it pays: on lines that are slower than compressing, for bytes that become fewer by it.
//!
//! The sender decides for each piece. It begins by compressing, which costs a fast line a fraction of a second, and stops
//! where more gets across without. Bytes that look like noise, or did not become fewer, are left alone for a while.
//!
//! Invariant: what comes out is what went in, or an error; and no more memory is taken than the announced length, which is
//! bounded before.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Where packing brings more than this across one connection in a second, it may be what holds the line up: level 1 packs
/// some 400 MB/s of what packs well on one core, a site has four connections, and both ends have other work.
const FAST_BYTES_PER_S: u64 = 40_000_000;
/// Below this there is time for the higher level.
const SLOW_BYTES_PER_S: u64 = 4_000_000;
/// Levels of zstd.
const LEVEL: i32 = 1;
/// See [`LEVEL`].
const LEVEL_SLOW: i32 = 3;
/// How long the line is measured at a time, at least.
const MEASURED: Duration = Duration::from_millis(250);
/// See [`MEASURED`], in bytes.
const MEASURED_BYTES: u64 = 512 * 1024;
/// A rate is remembered for this many measurings.
const REMEMBERED: u32 = 40;
/// Packing must be this many times as fast to be worth a core of a fast line.
const BETTER: f64 = 1.1;
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

/// How fast one connection carries bytes as they are and packed, and so which of the two it is to be.
///
/// What counts is how many bytes of blobs get across in a second. It begins with packing. While that brings less than
/// [`FAST_BYTES_PER_S`] the line is what holds it up, and packing is all gain. Where it brings more, bytes are sent as they
/// are for a moment, and what was faster stays; the other is tried again now and then.
#[derive(Debug, Default)]
pub(super) struct Gauge(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the present measuring began, the last time that something was sent, and how much since the beginning.
    run: Option<(Instant, Instant, u64)>,
    plain: bool,
    /// Bytes in a second as they are, and how many measurings ago that was.
    as_they_are: Option<(u64, u32)>,
    /// The same, packed.
    packed: Option<(u64, u32)>,
    rests: u32,
}

impl State {
    /// A measuring ended.
    fn measured(&mut self, rate: u64) {
        let age = |known: &mut Option<(u64, u32)>| {
            *known = known.filter(|(_, age)| *age < REMEMBERED).map(|(rate, age)| (rate, age + 1));
        };
        age(&mut self.as_they_are);
        age(&mut self.packed);
        match self.plain {
            true => self.as_they_are = Some((rate, 0)),
            false => self.packed = Some((rate, 0)),
        }
        let better = |a: u64, b: u64| a as f64 > b as f64 * BETTER;
        self.plain = match (self.plain, self.packed, self.as_they_are) {
            _ if rate <= FAST_BYTES_PER_S => false,
            // What is not known is tried.
            (false, _, None) => true,
            (true, None, _) => false,
            (_, Some((packed, _)), Some((plain, _))) => !better(packed, plain),
            // The one that was measured just now is known.
            (false, None, _) | (true, _, None) => self.plain,
        };
    }
}

/// What goes out at once.
#[derive(Debug)]
pub(super) struct Piece {
    pub bytes: Bytes,
    /// Its length before it was packed; none when it was not.
    pub raw: Option<usize>,
}

impl Gauge {
    /// So many bytes of blobs were taken by the line.
    pub fn sent(&self, bytes: u64) {
        self.sent_at(bytes, Instant::now());
    }

    fn sent_at(&self, bytes: u64, now: Instant) {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        s.run = match s.run {
            Some((began, last, sum)) if now.saturating_duration_since(last) < PAUSE => {
                let (took, sum) = (now.saturating_duration_since(began), sum + bytes);
                if took < MEASURED || sum < MEASURED_BYTES {
                    Some((began, now, sum))
                } else {
                    s.measured((sum as f64 / took.as_secs_f64()) as u64);
                    Some((now, now, 0))
                }
            }
            _ => Some((now, now, 0)),
        };
    }

    /// The level to pack the next piece with; none when it goes as it is.
    fn level(&self) -> Option<i32> {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if s.plain {
            return None;
        }
        if s.rests > 0 {
            s.rests -= 1;
            return None;
        }
        let slow = s.packed.is_some_and(|(rate, _)| rate < SLOW_BYTES_PER_S);
        Some(if slow { LEVEL_SLOW } else { LEVEL })
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

    /// A line that carries `line` bytes in a second, to a sender that packs to a fifth at `packs` bytes in a second, for so
    /// many seconds; which part of the bytes went as they are.
    fn plain_part(line: f64, packs: f64, seconds: u64) -> f64 {
        let (gauge, mut at) = (Gauge::default(), Instant::now());
        let (end, piece) = (at + Duration::from_secs(seconds), 256.0 * 1024.0);
        let (mut plain, mut all) = (0.0, 0.0);
        while at < end {
            let packed = gauge.level().is_some();
            let took = if packed { (piece / packs).max(piece / 5.0 / line) } else { piece / line };
            at += Duration::from_secs_f64(took);
            gauge.sent_at(piece as u64, at);
            all += piece;
            plain += if packed { 0.0 } else { piece };
        }
        plain / all
    }

    #[test]
    fn a_slow_line_is_packed_for_and_a_fast_one_is_not() {
        assert!(plain_part(300_000.0, 400e6, 60) < 0.01);
        assert!(plain_part(30e6, 400e6, 60) < 0.05, "packing brings five times as much");
        let fast = plain_part(900e6, 300e6, 60);
        assert!(fast > 0.95, "packing is what holds it up: {fast}");
    }

    #[test]
    fn a_pause_is_no_slowness() {
        let (gauge, start) = (Gauge::default(), Instant::now());
        gauge.sent_at(1, start);
        gauge.sent_at(1 << 30, start + Duration::from_millis(900));
        assert_eq!(gauge.level(), None, "it is fast, and tried without packing");
        gauge.sent_at(1, start + Duration::from_secs(100));
        gauge.sent_at(1, start + Duration::from_secs(100));
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
