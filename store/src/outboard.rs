//! The BLAKE3 tree of a blob, in the layout that bao-tree calls a pre-order outboard with 16 KiB groups.
//!
//! The tree over `n` groups splits off the largest power of two below `n` to the left. Its pairs
//! of child hashes, 64 bytes each, lie in pre-order: a pair, then all pairs of the left half, then
//! those of the right half. So the place of every pair follows from the blob's length alone, and a
//! window of the blob can be hashed and its pairs written without knowing the rest.
//!
//! Invariant: byte for byte what bao-tree makes, whatever the window and the number of threads.

use std::io;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use blake3::hazmat::{self, HasherExt, Mode};
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::GROUP_BYTES;

/// Bytes of one pair of hashes.
pub const PAIR_BYTES: u64 = 64;
/// Below this a subtree is hashed on the thread it began on, in bytes.
const SPLIT_ABOVE_BYTES: usize = 512 * 1024;

/// The hash of a subtree that is not the root.
pub(crate) type Cv = [u8; 32];

/// Groups of a blob of `size` bytes; an empty blob has one.
pub fn groups(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES).max(1)
}

/// Length of the outboard of a blob of `size` bytes, in bytes.
pub fn outboard_bytes(size: u64) -> u64 {
    (groups(size) - 1) * PAIR_BYTES
}

/// Groups in the left half of a tree over `n > 1` groups.
fn left_groups(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// Where the pairs of an outboard go.
pub(crate) trait PairSink {
    /// Writes `bytes` at `offset` (bytes) of the outboard.
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl PairSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        let slot = self.get_mut(at..at + bytes.len()).ok_or(io::ErrorKind::WriteZero)?;
        slot.copy_from_slice(bytes);
        Ok(())
    }
}

/// Hashes the subtree over `data`, which begins `offset` bytes into the blob, and fills `pairs`
/// with its pairs in pre-order. `pairs` is exactly as long as the subtree's outboard.
pub(crate) fn subtree(data: &[u8], offset: u64, pairs: &mut [u8], parallel: bool) -> Cv {
    let (left, right) = match halves(data, offset, pairs, parallel) {
        Halves::Group(cv) => return cv,
        Halves::Pair(left, right) => (left, right),
    };
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// Hashes a whole blob that fits into memory and fills `pairs` with its outboard.
pub(crate) fn whole(data: &[u8], pairs: &mut [u8], parallel: bool) -> blake3::Hash {
    if data.len() as u64 <= GROUP_BYTES {
        return blake3::hash(data);
    }
    match halves(data, 0, pairs, parallel) {
        Halves::Group(_) => unreachable!("a blob above one group has two halves"),
        Halves::Pair(left, right) => hazmat::merge_subtrees_root(&left, &right, Mode::Hash),
    }
}

enum Halves {
    Group(Cv),
    Pair(Cv, Cv),
}

fn halves(data: &[u8], offset: u64, pairs: &mut [u8], parallel: bool) -> Halves {
    if data.len() as u64 <= GROUP_BYTES {
        let mut hasher = blake3::Hasher::new();
        return Halves::Group(hasher.set_input_offset(offset).update(data).finalize_non_root());
    }
    let left_bytes = left_groups(groups(data.len() as u64)) * GROUP_BYTES;
    let (left_data, right_data) = data.split_at(left_bytes as usize);
    let (pair, below) = pairs.split_at_mut(PAIR_BYTES as usize);
    let (left_pairs, right_pairs) = below.split_at_mut(outboard_bytes(left_bytes) as usize);
    let mut left = || subtree(left_data, offset, left_pairs, parallel);
    let mut right = || subtree(right_data, offset + left_bytes, right_pairs, parallel);
    let (left, right) =
        if parallel && data.len() > SPLIT_ABOVE_BYTES { rayon::join(left, right) } else { (left(), right()) };
    pair[..32].copy_from_slice(&left);
    pair[32..].copy_from_slice(&right);
    Halves::Pair(left, right)
}

/// The part of the tree above windows of a fixed number of groups, a power of two.
pub(crate) struct Windows {
    /// Groups of the whole blob.
    pub groups: u64,
    /// Groups in one window; the last may hold fewer.
    pub window: u64,
}

impl Windows {
    /// Where the pairs of window `index` begin in the outboard, in bytes.
    pub fn offset(&self, index: u64) -> u64 {
        let (mut at, mut low, mut high) = (0, 0, self.groups);
        while high - low > self.window {
            let left = left_groups(high - low);
            if index * self.window < low + left {
                at += 1;
                high = low + left;
            } else {
                at += left;
                low += left;
            }
        }
        at * PAIR_BYTES
    }

    /// Writes the pairs above the windows, whose hashes are `cvs`, and returns the root.
    /// The blob must span more than one window.
    pub fn finish(&self, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<blake3::Hash> {
        let (left, right) = self.pair(0, self.groups, 0, cvs, sink)?;
        Ok(hazmat::merge_subtrees_root(&left, &right, Mode::Hash))
    }

    fn node(&self, low: u64, high: u64, at: u64, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<Cv> {
        if high - low <= self.window {
            return Ok(cvs[(low / self.window) as usize]);
        }
        let (left, right) = self.pair(low, high, at, cvs, sink)?;
        Ok(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash))
    }

    fn pair(&self, low: u64, high: u64, at: u64, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<(Cv, Cv)> {
        let left_count = left_groups(high - low);
        let left = self.node(low, low + left_count, at + 1, cvs, sink)?;
        let right = self.node(low + left_count, high, at + left_count, cvs, sink)?;
        sink.put(&[left, right].concat(), at * PAIR_BYTES)?;
        Ok((left, right))
    }
}

/// The root and the tree of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> (BlobHash, Vec<u8>) {
    let tree = PreOrderMemOutboard::create(bytes, BlockSize::from_chunk_log(4));
    (BlobHash(*tree.root.as_bytes()), tree.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_halves() {
        assert_eq!((groups(0), outboard_bytes(0)), (1, 0));
        assert_eq!((groups(GROUP_BYTES), outboard_bytes(GROUP_BYTES)), (1, 0));
        assert_eq!((groups(GROUP_BYTES + 1), outboard_bytes(GROUP_BYTES + 1)), (2, 64));
        let halves: Vec<u64> = [2, 3, 4, 5, 8, 9].map(left_groups).to_vec();
        assert_eq!(halves, [1, 2, 2, 4, 4, 8]);
    }

    #[test]
    fn windows_follow_each_other_in_pre_order() {
        // Five groups in windows of one: root, then ((0 1) (2 3)), then 4.
        let w = Windows { groups: 5, window: 2 };
        assert_eq!([w.offset(0), w.offset(1), w.offset(2)], [2 * 64, 3 * 64, 4 * 64]);
    }
}
