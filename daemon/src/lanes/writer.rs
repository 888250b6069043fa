//! Where verified pieces of a blob go on their way to the disk.
//!
//! Invariant: pairs come before the leaves that they prove, one write is under way at a time, and two pieces are held at most.

use std::sync::Arc;

use bao_tree::BaoTree;
use sluice_protocol::ids::BlobHash;
use sluice_store::staging::{Paged, Pair};
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::FetchError;
use super::{LeafSink, limits};

/// Collects verified pieces and writes them on blocking threads, one write at a time, while the
/// next pieces arrive.
pub(super) struct Writer {
    hash: BlobHash,
    sink: Arc<dyn LeafSink>,
    tree: BaoTree,
    pairs: Vec<Pair>,
    /// Bytes collected for one write.
    piece: usize,
    at: u64,
    held: Paged,
    reached: u64,
    writing: Option<JoinHandle<std::io::Result<()>>>,
}

impl Writer {
    pub fn new(hash: BlobHash, sink: Arc<dyn LeafSink>, tree: BaoTree, piece: usize) -> Self {
        Self { hash, sink, tree, piece, pairs: Vec::new(), at: 0, held: Paged::default(), reached: 0, writing: None }
    }

    pub async fn parent(&mut self, parent: &bao_tree::io::Parent) -> Result<(), FetchError> {
        // Pairs inside a group are not stored.
        let Some(index) = self.tree.pre_order_offset(parent.node) else {
            return Ok(());
        };
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(parent.pair.0.as_bytes());
        pair[32..].copy_from_slice(parent.pair.1.as_bytes());
        self.pairs.push((index, pair));
        if self.pairs.len() >= limits::FETCH_PAIRS_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    /// The end of what was handed over; what comes later begins there or behind.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    pub async fn leaf(&mut self, offset: u64, data: &[u8]) -> Result<(), FetchError> {
        let follows = offset == self.at + self.held.len() as u64;
        if !self.held.is_empty() && (!follows || self.held.len() + data.len() > self.piece) {
            self.flush().await?;
        }
        if self.held.is_empty() {
            self.at = offset;
            self.held = Paged::with_capacity(self.piece);
        }
        self.held.extend_from_slice(data);
        self.reached = offset + data.len() as u64;
        // Written as soon as it may be: what is held is lost with the process.
        if self.held.len() >= self.piece { self.flush().await } else { Ok(()) }
    }

    /// Hands what is held to a blocking thread, after the write before it has ended.
    async fn flush(&mut self) -> Result<(), FetchError> {
        self.settle().await?;
        if self.held.is_empty() && self.pairs.is_empty() {
            return Ok(());
        }
        let (sink, at) = (self.sink.clone(), self.at);
        let (pairs, held) = (std::mem::take(&mut self.pairs), std::mem::take(&mut self.held));
        self.writing = Some(spawn_blocking(move || {
            if !pairs.is_empty() {
                sink.parents(&pairs)?;
            }
            if held.is_empty() { Ok(()) } else { sink.leaf(at, &held) }
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), FetchError> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        // Forgotten only when it is over: whoever waits here may be told not to, and go on later.
        let written = writing.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        self.writing = None;
        written.map_err(|source| FetchError::Sink { hash: self.hash, source })
    }

    pub async fn finish(mut self) -> Result<(), FetchError> {
        self.flush().await?;
        self.settle().await
    }
}
