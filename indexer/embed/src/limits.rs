//! What a model and a call may ask for, so that no file and no caller decides how much memory is used.
//!
//! Invariant: every size that is read from a file is compared with a limit here, or with the length of the file, before
//! anything is allocated by it.

/// Bytes of a settings file (`config.json`, `modules.json` and the like).
pub const SETTINGS_BYTES: u64 = 1 << 20;
/// Bytes of `tokenizer.json`; that of XLM-RoBERTa has 17 MB.
pub const TOKENIZER_BYTES: u64 = 128 << 20;
/// Bytes of the header of a safetensors file.
pub const HEADER_BYTES: u64 = 16 << 20;
/// Width of a token's vector.
pub const HIDDEN: usize = 8192;
/// Width between the two halves of a feed-forward part, and of a dense module.
pub const INTERMEDIATE: usize = 65_536;
/// Layers of an encoder.
pub const LAYERS: usize = 256;
/// Entries of a vocabulary.
pub const VOCABULARY: usize = 4 << 20;
/// Tokens of one text, special tokens included.
pub const TEXT_TOKENS: usize = 8192;
/// Modules after the pooling.
pub const MODULES: usize = 16;
/// Bytes of one text.
pub const TEXT_BYTES: usize = 4 << 20;
/// Texts whose tokens are in memory at once; a longer list is worked off in parts of so many.
pub const WINDOW_TEXTS: usize = 4096;
/// Tokens that go through the encoder together unless the caller says otherwise.
pub const BATCH_TOKENS: usize = 1024;
/// Rows that one thread takes through a layer before it takes the next.
pub const BLOCK_ROWS: usize = 96;
