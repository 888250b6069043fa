//! Which requests are sent before the answers to earlier ones were read.
//!
//! Invariant: one request is always on its way, and more only while all that they ask for fits into the window: what is
//! in flight is bounded, and the line is never idle for a way there and back between two small requests.

use std::ops::Range;

/// A row of requests, by the bytes that each asks for.
pub(super) struct Ahead {
    lens: Vec<u64>,
    window: u64,
    asked: usize,
    bytes: u64,
}

impl Ahead {
    /// Nothing is asked yet; up to `window` bytes may be.
    pub fn new(lens: Vec<u64>, window: u64) -> Self {
        Self { lens, window, asked: 0, bytes: 0 }
    }

    /// The next request to send before answer `reading` is read; none when it is time to read.
    pub fn next(&mut self, reading: usize) -> Option<usize> {
        let i = self.asked;
        let len = *self.lens.get(i)?;
        if i > reading && self.bytes + len > self.window {
            return None;
        }
        self.asked += 1;
        self.bytes += len;
        Some(i)
    }

    /// Answer `i` was read.
    pub fn answered(&mut self, i: usize) {
        self.bytes -= self.lens[i];
    }
}

/// Cuts ascending ranges into requests of `bytes_max` bytes (a multiple of the group) and `ranges_max` ranges at most.
pub(super) fn portions(ranges: &[Range<u64>], bytes_max: u64, ranges_max: usize) -> Vec<Vec<Range<u64>>> {
    let mut all: Vec<Vec<Range<u64>>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            if room == 0 || all.last().is_none_or(|last| last.len() >= ranges_max) {
                all.push(Vec::new());
                room = bytes_max;
            }
            let end = range.end.min(start.saturating_add(room));
            room -= end - start;
            if let Some(last) = all.last_mut() {
                last.push(start..end);
            }
            start = end;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_halves_of_a_window_are_on_their_way() {
        let mut ahead = Ahead::new(vec![5, 5, 5, 5], 10);
        assert_eq!((ahead.next(0), ahead.next(0), ahead.next(0)), (Some(0), Some(1), None));
        ahead.answered(0);
        assert_eq!((ahead.next(1), ahead.next(1)), (Some(2), None));
    }

    #[test]
    fn one_that_is_larger_than_the_window_goes_alone() {
        let mut ahead = Ahead::new(vec![50, 50], 10);
        assert_eq!((ahead.next(0), ahead.next(0)), (Some(0), None));
        ahead.answered(0);
        assert_eq!((ahead.next(1), ahead.next(1)), (Some(1), None));
    }

    proptest! {
        #[test]
        fn portions_are_the_ranges_in_order(
            gaps in prop::collection::vec((0u64..5, 1u64..40), 0..20),
            bytes_max in 1u64..20,
            ranges_max in 1usize..5,
        ) {
            let mut at = 0;
            let ranges: Vec<Range<u64>> = gaps.iter().map(|(gap, len)| { at += gap + len; at - len..at }).collect();
            let cut = portions(&ranges, bytes_max, ranges_max);
            for portion in &cut {
                prop_assert!(!portion.is_empty() && portion.len() <= ranges_max);
                prop_assert!(portion.iter().map(|r| r.end - r.start).sum::<u64>() <= bytes_max);
            }
            let flat = |all: &mut dyn Iterator<Item = Range<u64>>| all.flatten().collect::<Vec<u64>>();
            prop_assert_eq!(flat(&mut cut.into_iter().flatten()), flat(&mut ranges.into_iter()));
        }

        #[test]
        fn all_are_asked_in_order_and_within_the_window(lens in prop::collection::vec(1u64..20, 0..30), window in 1u64..50) {
            let mut ahead = Ahead::new(lens.clone(), window);
            let mut asked = 0;
            for reading in 0..lens.len() {
                while let Some(i) = ahead.next(reading) {
                    prop_assert_eq!(i, asked);
                    asked += 1;
                    let flying: u64 = lens[reading..asked].iter().sum();
                    prop_assert!(flying <= window || asked == reading + 1);
                }
                prop_assert!(asked > reading);
                ahead.answered(reading);
            }
        }
    }
}
