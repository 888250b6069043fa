//! Chunk lists from friends and from others.

use proptest::prelude::*;
use sluice_protocol::chunks::{Chunk, ChunkList, Cut};
use sluice_protocol::codec::CodecError;
use sluice_protocol::ids::ChunkHash;
use sluice_protocol::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, FILE_BYTES_MAX};

fn list(lens: &[u32]) -> ChunkList {
    let chunks: Vec<Chunk> =
        lens.iter().map(|len| Chunk { len: *len, hash: ChunkHash::of(&len.to_le_bytes()) }).collect();
    ChunkList { cut: Cut::FastCdc, size: lens.iter().map(|l| u64::from(*l)).sum(), chunks }
}

fn read(list: &ChunkList) -> Result<ChunkList, CodecError> {
    ChunkList::from_bytes(&list.to_bytes())
}

/// The bytes of a good list with some of them replaced.
fn patched(at: usize, with: &[u8]) -> Result<ChunkList, CodecError> {
    let mut bytes = list(&[20_000, 30_000, 1]).to_bytes();
    bytes[at..at + with.len()].copy_from_slice(with);
    ChunkList::from_bytes(&bytes)
}

#[test]
fn good_lists() {
    for lens in [&[][..], &[1], &[CHUNK_BYTES_MAX], &[CHUNK_BYTES_MIN, 1], &[CHUNK_BYTES_MAX, CHUNK_BYTES_MAX]] {
        assert_eq!(read(&list(lens)), Ok(list(lens)), "{lens:?}");
    }
    assert!(patched(0, b"sluicecl").is_ok());
    let extents: Vec<u64> = list(&[20_000, 30_000, 1]).extents().map(|(at, _)| at).collect();
    assert_eq!(extents, [0, 20_000, 50_000]);
}

#[test]
fn lengths_that_no_honest_cutter_makes() {
    for lens in
        [&[0][..], &[20_000, 0], &[0, 20_000], &[CHUNK_BYTES_MAX + 1], &[CHUNK_BYTES_MIN - 1, 1], &[1, 1], &[u32::MAX]]
    {
        assert!(matches!(read(&list(lens)), Err(CodecError::Invalid(_))), "{lens:?}");
    }
}

#[test]
fn heads_that_lie() {
    assert!(matches!(patched(0, b"SLUICECL"), Err(CodecError::WrongKind { .. })));
    assert!(matches!(patched(8, &2u32.to_le_bytes()), Err(CodecError::UnknownVersion { found: 2, .. })));
    assert!(matches!(patched(12, &9u32.to_le_bytes()), Err(CodecError::Invalid(_))));
    for size in [0, 50_000, 50_002, FILE_BYTES_MAX] {
        assert!(matches!(patched(16, &u64::to_le_bytes(size)), Err(CodecError::Invalid(_))), "{size}");
    }
    for size in [FILE_BYTES_MAX + 1, u64::MAX] {
        assert!(matches!(patched(16, &size.to_le_bytes()), Err(CodecError::TooLarge { .. })), "{size}");
    }
    for count in [0, 2, 4, u64::MAX, u64::MAX / 36, 1 << 62] {
        assert!(matches!(patched(24, &u64::to_le_bytes(count)), Err(CodecError::Malformed(_))), "{count}");
    }
    let bytes = list(&[20_000]).to_bytes();
    for cut in 0..bytes.len() {
        assert!(ChunkList::from_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(ChunkList::from_bytes(&[&bytes[..], b"x"].concat()).is_err());
}

proptest! {
    #[test]
    fn lists_come_back(lens in prop::collection::vec(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX, 0..200), last in 1..=CHUNK_BYTES_MAX) {
        let mut lens = lens;
        lens.push(last);
        let list = list(&lens);
        prop_assert_eq!(list.to_bytes().len(), 32 + 36 * lens.len());
        prop_assert_eq!(read(&list), Ok(list));
    }
}
