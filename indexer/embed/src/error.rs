//! What can go wrong, each in one sentence that names the file, the key and the value.
//!
//! Invariant: nothing that a file or a text holds makes this crate panic; it becomes one of these.

use std::path::PathBuf;

/// Why a model was not loaded or a text not embedded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model could not be read.
    #[error("{}: {source}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    /// A file that the model needs is not there.
    #[error("{} is missing: {hint}", file.display())]
    Missing { file: PathBuf, hint: &'static str },
    /// A file is larger than any of its kind should be.
    #[error("{} has {bytes} bytes, more than the {limit} that such a file may have", file.display())]
    TooLarge { file: PathBuf, bytes: u64, limit: u64 },
    /// A setting that this encoder does not know or does not carry out.
    #[error("{}: `{key}` is {value}: {why}", file.display())]
    Refused { file: PathBuf, key: String, value: String, why: String },
    /// The tensors are not what the settings say.
    #[error("{}: {why}", file.display())]
    Tensors { file: PathBuf, why: String },
    /// The tokenizer could not be made, or could not read a text.
    #[error("{}: {why}", file.display())]
    Tokenizer { file: PathBuf, why: String },
    /// A text has more tokens than the model takes, and the caller did not allow to cut it.
    #[error(
        "text {index} has {tokens} tokens, more than the {limit} that the model takes: shorten it or allow truncation"
    )]
    TextTooLong { index: usize, tokens: usize, limit: usize },
    /// A text has more bytes than this crate takes.
    #[error("text {index} has {bytes} bytes, more than the {limit} that a text may have")]
    TextTooLarge { index: usize, bytes: usize, limit: usize },
    /// More dimensions were asked for than a vector has, or none.
    #[error("{asked} dimensions were asked for; the model's vectors have {dim}")]
    Dimensions { asked: usize, dim: usize },
    /// The encoder produced a number that is none.
    #[error("the vector of text {index} is not finite: the model's weights overflow in this precision")]
    NotFinite { index: usize },
    /// The threads could not be started.
    #[error("could not start the encoder's threads: {0}")]
    Threads(String),
    /// The caller raised its flag.
    #[error("cancelled")]
    Cancelled,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
