//! From texts to the numbers of their tokens.
//!
//! Invariant: padding and truncation are ours: what `tokenizer.json` says of them is ignored, as sentence-transformers
//! does; and every number is one that the encoder's tables hold.

use std::path::PathBuf;

use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

use crate::error::{Error, Result};
use crate::layout::{Folder, Layout};
use crate::limits;

/// A tokenizer with the model's limit of tokens.
pub struct Tokens {
    tokenizer: Tokenizer,
    file: PathBuf,
    vocabulary: usize,
    max_tokens: usize,
    lowercase: bool,
}

/// The tokens of one text.
pub struct Encoded {
    pub ids: Vec<u32>,
    /// How many there were before the text was cut.
    pub whole: usize,
}

impl Tokens {
    /// Reads the model's tokenizer; adds its hash to the layout's.
    pub fn load(root: &std::path::Path, layout: &mut Layout) -> Result<Self> {
        let name = format!("{}tokenizer.json", layout.folder);
        let mut folder = Folder::new(root);
        let file = folder.path(&name);
        let hint = "the tokenizer is read from it alone, not from vocab.txt or sentencepiece.bpe.model";
        let bytes = folder.bytes(&name, limits::TOKENIZER_BYTES)?;
        let bytes = bytes.ok_or_else(|| Error::Missing { file: file.clone(), hint })?;
        layout.files.append(&mut folder.files);
        let bad = |e: tokenizers::Error| Error::Tokenizer { file: file.clone(), why: e.to_string() };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(bad)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(bad)?;
        let (vocabulary, max_tokens, lowercase) = (layout.vocabulary, layout.max_tokens, layout.lowercase);
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if largest >= vocabulary {
            let why =
                format!("it has a token numbered {largest}; the encoder has {vocabulary}: they are of two models");
            return Err(Error::Tokenizer { file, why });
        }
        Ok(Self { tokenizer, file, vocabulary, max_tokens, lowercase })
    }

    /// The tokens of a prompt and a text, cut to the model's limit. `index` is the text's place, for errors.
    pub fn encode(&self, prompt: &str, text: &str, index: usize) -> Result<Encoded> {
        if text.len() > limits::TEXT_BYTES {
            return Err(Error::TextTooLarge { index, bytes: text.len(), limit: limits::TEXT_BYTES });
        }
        let mut input = std::borrow::Cow::Borrowed(text);
        if !prompt.is_empty() {
            input.to_mut().insert_str(0, prompt);
        }
        if self.lowercase {
            input = input.to_lowercase().into();
        }
        let bad = |why: String| Error::Tokenizer { file: self.file.clone(), why };
        let failed = |e: tokenizers::Error| bad(format!("text {index}: {e}"));
        let mut encoding = self.tokenizer.encode_fast(&*input, false).map_err(failed)?;
        let special = self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let whole = encoding.len() + special;
        if whole > self.max_tokens {
            encoding.truncate(self.max_tokens.saturating_sub(special), 0, TruncationDirection::Right);
        }
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        if ids.is_empty() || ids.len() > self.max_tokens || ids.iter().any(|&id| id as usize >= self.vocabulary) {
            return Err(bad(format!("text {index} became {} tokens that the encoder cannot take", ids.len())));
        }
        Ok(Encoded { whole: whole.max(ids.len()), ids })
    }

    /// How many tokens a prompt takes at the front of a text, the closing special token not counted.
    pub fn prompt_length(&self, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let ids = self.encode("", prompt, 0)?.ids;
        let added = self.tokenizer.get_added_tokens_decoder();
        let closed = ids.last().and_then(|last| added.get(last)).is_some_and(|token| token.special);
        Ok(ids.len() - usize::from(closed))
    }
}
