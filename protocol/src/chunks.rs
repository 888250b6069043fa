//! The chunk list of a blob: the length and BLAKE3 hash of every chunk, in order.
//!
//! A list is itself a blob: a 32-byte head and 36 bytes a chunk, little-endian.
//!
//! Invariant: the lengths add up to the blob's length, no chunk is empty or longer than
//! [`limits::CHUNK_BYTES_MAX`], and all but the last reach [`limits::CHUNK_BYTES_MIN`]. So a hostile
//! list costs no more than the honest list of a blob of that size could.

use crate::codec::{CodecError, at_most};
use crate::ids::ChunkHash;
use crate::limits;

const MAGIC: &[u8; 8] = b"sluicecl";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 32;
const CHUNK_BYTES: usize = 36;

/// How a blob was cut. The list is valid whatever it says; it tells whether two lists are comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Cut {
    /// FastCDC v2020, normalisation level 1, at 16/64/256 KiB.
    FastCdc = 1,
}

/// One chunk: its length in bytes and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub len: u32,
    pub hash: ChunkHash,
}

/// All chunks of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkList {
    pub cut: Cut,
    /// Length of the blob, in bytes.
    pub size: u64,
    pub chunks: Vec<Chunk>,
}

impl ChunkList {
    /// The list as a blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + CHUNK_BYTES * self.chunks.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.cut as u32).to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&(self.chunks.len() as u64).to_le_bytes());
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.len.to_le_bytes());
            out.extend_from_slice(&chunk.hash.0);
        }
        out
    }

    /// Reads a list; nothing is allocated before the claimed count fits the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        at_most("a chunk list", bytes.len() as u64, limits::CHUNK_LIST_BYTES_MAX)?;
        if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC {
            return Err(CodecError::WrongKind { expected: "chunk list" });
        }
        let u32_at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes"));
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("8 bytes"));
        if u32_at(8) != VERSION {
            return Err(CodecError::UnknownVersion {
                kind: "chunk list",
                found: u64::from(u32_at(8)),
                known: u64::from(VERSION),
            });
        }
        if u32_at(12) != Cut::FastCdc as u32 {
            return Err(CodecError::Invalid(format!("the way {} to cut a blob is unknown", u32_at(12))));
        }
        let (size, count) = (u64_at(16), u64_at(24));
        at_most("the size of a blob", size, limits::FILE_BYTES_MAX)?;
        let body = &bytes[HEAD_BYTES..];
        if count.checked_mul(CHUNK_BYTES as u64) != Some(body.len() as u64) {
            return Err(CodecError::Malformed("a chunk list of another length than it claims".into()));
        }
        let chunks: Vec<Chunk> = body.chunks_exact(CHUNK_BYTES).map(read_chunk).collect();
        check_lengths(&chunks, size)?;
        Ok(Self { cut: Cut::FastCdc, size, chunks })
    }

    /// The chunks with their offsets in the blob, in bytes.
    pub fn extents(&self) -> impl Iterator<Item = (u64, Chunk)> + '_ {
        self.chunks.iter().scan(0u64, |at, c| {
            let offset = *at;
            *at += u64::from(c.len);
            Some((offset, *c))
        })
    }
}

fn check_lengths(chunks: &[Chunk], size: u64) -> Result<(), CodecError> {
    let total = chunks.iter().map(|c| u64::from(c.len)).sum::<u64>();
    let fits = |c: &Chunk, least: u32| (least..=limits::CHUNK_BYTES_MAX).contains(&c.len);
    let ok = match chunks.split_last() {
        None => true,
        Some((last, before)) => fits(last, 1) && before.iter().all(|c| fits(c, limits::CHUNK_BYTES_MIN)),
    };
    if total != size || !ok {
        return Err(CodecError::Invalid("the chunks do not make up the blob".into()));
    }
    Ok(())
}

fn read_chunk(raw: &[u8]) -> Chunk {
    Chunk {
        len: u32::from_le_bytes(raw[..4].try_into().expect("4 bytes")),
        hash: ChunkHash(raw[4..].try_into().expect("32 bytes")),
    }
}
