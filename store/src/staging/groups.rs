//! Which 16 KiB groups of a staged blob are here, and how they came.
//!
//! Invariant: a group counts as here only when all its bytes were written. A group that a local
//! copy touched stays marked as copied, because nothing but the blob's root can vouch for it.

use std::collections::BTreeMap;
use std::ops::Range;

use sluice_protocol::limits::GROUP_BYTES;

/// The state of one staged blob's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Groups {
    size: u64,
    have: Vec<u8>,
    copied: Vec<u8>,
    /// Pieces of groups that are not whole yet: start → end, in bytes, disjoint.
    pieces: BTreeMap<u64, u64>,
    have_count: u64,
}

/// How many groups a blob of `size` bytes has.
pub(super) fn count(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES)
}

/// Bytes of a bitmap for a blob of `size` bytes.
pub(super) fn bitmap_len(size: u64) -> usize {
    count(size).div_ceil(8) as usize
}

fn get(bits: &[u8], i: u64) -> bool {
    bits[(i / 8) as usize] & (1 << (i % 8)) != 0
}

fn set(bits: &mut [u8], i: u64, on: bool) {
    let bit = 1 << (i % 8);
    if on {
        bits[(i / 8) as usize] |= bit;
    } else {
        bits[(i / 8) as usize] &= !bit;
    }
}

impl Groups {
    /// Nothing is here.
    pub fn empty(size: u64) -> Self {
        let bits = vec![0; bitmap_len(size)];
        Self { size, have: bits.clone(), copied: bits, pieces: BTreeMap::new(), have_count: 0 }
    }

    /// From a stored bitmap; `None` when it does not belong to a blob of this size.
    pub fn from_bitmap(size: u64, have: &[u8]) -> Option<Self> {
        let mut groups = Self::empty(size);
        let past_end = (count(size)..(have.len() as u64) * 8).any(|i| get(have, i));
        if have.len() != groups.have.len() || past_end {
            return None;
        }
        groups.have.copy_from_slice(have);
        groups.have_count = have.iter().map(|b| u64::from(b.count_ones())).sum();
        Some(groups)
    }

    /// The bitmap of groups that are here; bit i, least significant first.
    pub fn bitmap(&self) -> &[u8] {
        &self.have
    }

    /// The bitmap of groups that a local copy touched.
    pub fn copied_bitmap(&self) -> &[u8] {
        &self.copied
    }

    /// Takes over which groups were copied before a restart.
    pub fn set_copied_bitmap(&mut self, bits: &[u8]) {
        if bits.len() == self.copied.len() {
            self.copied.copy_from_slice(bits);
        } else {
            self.copied.fill(0xff);
        }
    }

    /// Whether a local copy took part.
    pub fn any_copied(&self) -> bool {
        (0..count(self.size)).any(|i| get(&self.copied, i))
    }

    pub fn is_complete(&self) -> bool {
        self.have_count == count(self.size)
    }

    /// Bytes in whole groups.
    pub fn have_bytes(&self) -> u64 {
        let last = count(self.size);
        let short = last * GROUP_BYTES - self.size;
        let cut = if last > 0 && get(&self.have, last - 1) { short } else { 0 };
        self.have_count * GROUP_BYTES - cut
    }

    fn bytes_of(&self, group: u64) -> Range<u64> {
        group * GROUP_BYTES..((group + 1) * GROUP_BYTES).min(self.size)
    }

    fn add(&mut self, group: u64) {
        if !get(&self.have, group) {
            set(&mut self.have, group, true);
            self.have_count += 1;
        }
    }

    /// The groups that `range` touches.
    fn touched(range: &Range<u64>) -> Range<u64> {
        range.start / GROUP_BYTES..range.end.div_ceil(GROUP_BYTES)
    }

    /// A local copy is about to write `range`.
    pub fn will_copy(&mut self, range: &Range<u64>) {
        for group in Self::touched(range) {
            set(&mut self.copied, group, true);
        }
    }

    /// All bytes of `range` were written.
    pub fn wrote(&mut self, range: Range<u64>) {
        for group in Self::touched(&range) {
            let whole = self.bytes_of(group);
            if range.start <= whole.start && whole.end <= range.end {
                self.add(group);
            } else if !get(&self.have, group) {
                self.add_piece(range.start.max(whole.start)..range.end.min(whole.end), whole, group);
            }
        }
    }

    fn add_piece(&mut self, piece: Range<u64>, whole: Range<u64>, group: u64) {
        let mut joined = piece;
        let near: Vec<u64> = self
            .pieces
            .range(whole.start..whole.end)
            .filter(|(start, end)| **start <= joined.end && joined.start <= **end)
            .map(|(start, _)| *start)
            .collect();
        for start in near {
            let end = self.pieces.remove(&start).unwrap_or(start);
            joined = joined.start.min(start)..joined.end.max(end);
        }
        if joined == whole {
            self.add(group);
        } else {
            self.pieces.insert(joined.start, joined.end);
        }
    }

    /// What of `within` is not here, in whole groups, cut at the blob's end.
    pub fn missing(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let end = within.end.min(self.size);
        if within.start >= end {
            return vec![];
        }
        let mut out: Vec<Range<u64>> = Vec::new();
        for group in Self::touched(&(within.start..end)) {
            if get(&self.have, group) {
                continue;
            }
            let bytes = self.bytes_of(group);
            match out.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => out.push(bytes),
            }
        }
        out
    }

    /// Forgets every group that a local copy touched; returns how many bytes that are.
    pub fn drop_copied(&mut self) -> u64 {
        let mut bytes = 0;
        for group in 0..count(self.size) {
            if get(&self.copied, group) {
                if get(&self.have, group) {
                    set(&mut self.have, group, false);
                    self.have_count -= 1;
                    let range = self.bytes_of(group);
                    bytes += range.end - range.start;
                }
                set(&mut self.copied, group, false);
            }
        }
        self.pieces.clear();
        bytes
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::empty(self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G: u64 = GROUP_BYTES;

    #[test]
    fn pieces_join_into_groups() {
        let mut g = Groups::empty(2 * G + 5);
        g.wrote(0..10);
        g.wrote(20..G);
        assert_eq!(g.missing(0..u64::MAX), vec![0..2 * G + 5]);
        g.wrote(10..20);
        assert_eq!(g.missing(0..u64::MAX), vec![G..2 * G + 5]);
        g.wrote(G + 3..2 * G + 5);
        assert_eq!(g.missing(0..u64::MAX), vec![G..2 * G]);
        g.wrote(G..G + 4);
        assert!(g.is_complete());
        assert_eq!(g.have_bytes(), 2 * G + 5);
    }

    #[test]
    fn a_foreign_bitmap_is_refused() {
        assert!(Groups::from_bitmap(G, &[1]).is_some());
        assert!(Groups::from_bitmap(G, &[3]).is_none(), "a bit past the end");
        assert!(Groups::from_bitmap(G, &[1, 0]).is_none());
        assert!(Groups::from_bitmap(0, &[]).unwrap().is_complete());
    }

    #[test]
    fn copied_groups_can_be_dropped() {
        let mut g = Groups::empty(4 * G);
        g.wrote(0..2 * G);
        g.will_copy(&(2 * G + 1..3 * G));
        g.wrote(2 * G..4 * G);
        assert!(g.is_complete() && g.any_copied());
        assert_eq!(g.drop_copied(), G);
        assert_eq!(g.missing(0..4 * G), vec![2 * G..3 * G]);
        assert!(!g.any_copied());
    }

    proptest! {
        #[test]
        fn like_a_set_of_bytes(size in 0u64..200_000, writes in prop::collection::vec((0u64..200_000, 0u64..70_000), 0..40)) {
            let mut g = Groups::empty(size);
            let mut model = vec![false; size as usize];
            for (start, len) in writes {
                let (start, end) = (start.min(size), (start + len).min(size));
                g.wrote(start..end);
                model[start as usize..end as usize].fill(true);
            }
            let whole = |i: u64| g.bytes_of(i).all(|b| model[b as usize]);
            let missing = g.missing(0..size);
            for i in 0..count(size) {
                let reported = missing.iter().any(|r| r.contains(&(i * G)));
                prop_assert_eq!(reported, !whole(i), "group {}", i);
            }
            prop_assert_eq!(g.is_complete(), missing.is_empty());
            prop_assert_eq!(g.have_bytes(), size - missing.iter().map(|r| r.end - r.start).sum::<u64>());
            let again = Groups::from_bitmap(size, g.bitmap()).unwrap();
            prop_assert_eq!(again.have_bytes(), g.have_bytes());
        }
    }
}
