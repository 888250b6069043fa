//! Sluice's encoder: texts into vectors, on the CPU, without a network. See `docs/embedding.md`.
//!
//! Invariant: a vector is decided by the text, its kind, the model's files and how it was loaded (precision, prompts); batch, order and threads have no part in it.

mod encoder;
mod error;
mod layout;
pub mod limits;
mod math;
mod matmul;
mod model;
mod pool;
mod simd;
mod spec;
mod tensors;
mod tokens;
mod weights;

use std::sync::atomic::AtomicBool;

pub use error::{Error, Result};
pub use model::{LoadOptions, PackedEmbedder};
#[doc(hidden)]
pub use simd::Isa;
pub use spec::{Family, Kind, ModelSpec, Pooling, Precision, Prompts};

/// What a caller may choose for each call.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// Whether a text with more tokens than the model takes is cut; otherwise it is an error.
    pub truncate: bool,
    /// Whether vectors get length one; `None` for what the model says.
    pub normalize: Option<bool>,
    /// How many of a vector's first numbers are kept, for models that were trained for it; `None` for all.
    pub dimensions: Option<usize>,
    /// Looked at before each batch: true ends the call with [`Error::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

/// Vectors in the order of their texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// `dim` numbers for each text, one text after the other.
    pub data: Vec<f32>,
    pub dim: usize,
    /// How many tokens each text was encoded with, its prompt and special tokens included.
    pub tokens: Vec<u32>,
    /// The places of texts that were cut, ascending.
    pub truncated: Vec<usize>,
}

impl Vectors {
    /// The vectors one by one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> + DoubleEndedIterator {
        self.data.chunks_exact(self.dim)
    }
}

/// What turns texts into vectors.
pub trait Embedder: Send + Sync {
    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// Embeds texts in their order.
    ///
    /// # Errors
    /// A text is too long, the dimensions do not fit, the call was cancelled, or the encoder failed.
    fn embed_with(&self, texts: &[&str], kind: Kind, options: &Options) -> Result<Vectors>;

    /// Embeds texts in their order; one that is too long is an error.
    ///
    /// # Errors
    /// As for [`Embedder::embed_with`].
    fn embed(&self, texts: &[&str], kind: Kind) -> Result<Vectors> {
        self.embed_with(texts, kind, &Options::default())
    }
}
