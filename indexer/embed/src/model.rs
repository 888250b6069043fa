//! A loaded model: from texts to vectors.
//!
//! Invariant: a text's vector depends on the text, its kind and the model, not on what is embedded with it; and what is
//! in memory at once is bounded by the number of tokens in a batch, not by the number of texts.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::encoder::{self, Buffers, Encoder};
use crate::error::{Error, Result};
use crate::layout;
use crate::limits;
use crate::pool::{self, Normalize, Pool};
use crate::simd::Isa;
use crate::spec::{Kind, ModelSpec, Precision, Prompts};
use crate::tokens::{Encoded, Tokens};
use crate::weights::{self, Step};
use crate::{Embedder, Options, Vectors};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub precision: Precision,
    /// Threads that encode; `None` for one on each core.
    pub threads: Option<usize>,
    /// Tokens that go through the encoder together. A single text may have more.
    pub batch_tokens: usize,
    /// Prompts to be used in place of the model's own, for models whose files do not carry them.
    pub prompts: Option<Prompts>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { precision: Precision::F32, threads: None, batch_tokens: limits::BATCH_TOKENS, prompts: None }
    }
}

impl Precision {
    /// The fastest precision of this machine: bfloat16 where it has instructions for it, else 32 bits.
    pub fn fastest() -> Self {
        if Isa::detect().has_bf16() { Self::Bf16 } else { Self::F32 }
    }
}

/// A model of the BERT or XLM-RoBERTa family on the CPU.
pub struct PackedEmbedder {
    spec: ModelSpec,
    tokens: Tokens,
    encoder: Encoder,
    /// The modules after the pooling, without a closing normalisation.
    steps: Vec<Step>,
    pools_prompt: bool,
    batch_tokens: usize,
    threads: rayon::ThreadPool,
    buffers: Mutex<Vec<Buffers>>,
}

impl std::fmt::Debug for PackedEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedEmbedder").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl PackedEmbedder {
    /// Loads the model in a folder as sentence-transformers saves it.
    ///
    /// # Errors
    /// A file is missing, damaged, or says something that this encoder does not carry out.
    pub fn load(root: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_with(root, options, Isa::detect())
    }

    /// The same with instructions of the caller's choice, so that tests can compare them.
    #[doc(hidden)]
    pub fn load_with(root: &Path, options: &LoadOptions, isa: Isa) -> Result<Self> {
        let mut layout = layout::read(root)?;
        let tokens = Tokens::load(root, &mut layout)?;
        let name = format!("{}model.safetensors", layout.folder);
        let (encoder, hash) = weights::encoder(&root.join(&name), &layout, options.precision, isa)?;
        layout.files.insert(name, hash);
        let mut steps = weights::steps(root, &mut layout)?;
        let dim = steps.iter().rev().find_map(|step| match step {
            Step::Dense(linear, _) => Some(linear.matrix.outputs()),
            Step::Normalize => None,
        });
        let normalized = matches!(steps.last(), Some(Step::Normalize));
        steps.truncate(steps.len() - usize::from(normalized));
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .thread_name(|n| format!("embed-{n}"))
            .build()
            .map_err(|e| Error::Threads(e.to_string()))?;
        let spec = ModelSpec {
            id: ModelSpec::id_of(&layout.files),
            family: layout.family,
            dim: dim.unwrap_or(layout.hidden),
            max_tokens: layout.max_tokens,
            layers: layout.layers,
            hidden: layout.hidden,
            heads: layout.heads,
            pooling: layout.pooling,
            normalized,
            prompts: options.prompts.clone().unwrap_or(layout.prompts),
            precision: options.precision,
            files: layout.files,
        };
        Ok(Self {
            spec,
            tokens,
            encoder,
            steps,
            pools_prompt: layout.pools_prompt,
            batch_tokens: options.batch_tokens.max(1),
            threads,
            buffers: Mutex::default(),
        })
    }

    /// Embeds texts that are few enough to have all their tokens in memory; `first` is the place of the first.
    fn window(
        &self,
        texts: &[&str],
        first: usize,
        call: &Call,
        out: &mut Vectors,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let encoded: Vec<Encoded> = texts
            .par_iter()
            .enumerate()
            .map(|(at, text)| self.tokens.encode(call.prompt, text, first + at))
            .collect::<Result<_>>()?;
        for (at, text) in encoded.iter().enumerate() {
            out.tokens.push(text.ids.len() as u32);
            if text.whole > text.ids.len() {
                let (index, tokens, limit) = (first + at, text.whole, self.spec.max_tokens);
                if !call.options.truncate {
                    return Err(Error::TextTooLong { index, tokens, limit });
                }
                out.truncated.push(index);
            }
        }
        // Texts of one length together, the longest first: then the last batches are those that take the least time.
        let mut order: Vec<usize> = (0..encoded.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(encoded[at].ids.len()));
        for batch in batches(&order, &encoded, self.batch_tokens) {
            if call.options.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            self.batch(&order[batch], &encoded, first, call, out, buffers)?;
        }
        Ok(())
    }

    fn batch(
        &self,
        batch: &[usize],
        encoded: &[Encoded],
        first: usize,
        call: &Call,
        out: &mut Vectors,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let texts: Vec<&[u32]> = batch.iter().map(|&at| &encoded[at].ids[..]).collect();
        self.encoder.encode(&texts, buffers);
        let (hidden, isa) = (self.spec.hidden, self.encoder.isa);
        for (span, &at) in encoder::spans(&texts).into_iter().zip(batch) {
            let mut vector = vec![0.0; hidden];
            let rows = &buffers.rows[span.start * hidden..span.end * hidden];
            isa.run(Pool { pooling: self.spec.pooling, rows, skip: call.skip, to: &mut vector });
            let mut vector = pool::steps(isa, &self.steps, vector);
            vector.truncate(out.dim);
            if call.options.normalize.unwrap_or(self.spec.normalized) {
                isa.run(Normalize(&mut vector));
            }
            let index = first + at;
            if !vector.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { index });
            }
            out.data[index * out.dim..(index + 1) * out.dim].copy_from_slice(&vector);
        }
        Ok(())
    }
}

/// What is the same for all texts of a call.
struct Call<'a> {
    prompt: &'a str,
    /// Tokens at the front of each text that are not pooled.
    skip: usize,
    options: &'a Options<'a>,
}

/// Cuts a list of texts into parts of at most `limit` tokens, or of one text.
fn batches(order: &[usize], encoded: &[Encoded], limit: usize) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (place, &at) in order.iter().enumerate() {
        let length = encoded[at].ids.len();
        tokens += length;
        match found.last_mut() {
            Some(batch) if tokens <= limit => batch.end = place + 1,
            _ => {
                found.push(place..place + 1);
                tokens = length;
            }
        }
    }
    found
}

impl Embedder for PackedEmbedder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn embed_with(&self, texts: &[&str], kind: Kind, options: &Options) -> Result<Vectors> {
        let dim = options.dimensions.unwrap_or(self.spec.dim);
        if dim == 0 || dim > self.spec.dim {
            return Err(Error::Dimensions { asked: dim, dim: self.spec.dim });
        }
        let prompt = self.spec.prompts.of(kind);
        let skip = if self.pools_prompt { 0 } else { self.tokens.prompt_length(prompt)? };
        let call = Call { prompt, skip, options };
        let mut out = Vectors { data: vec![0.0; texts.len() * dim], dim, tokens: Vec::new(), truncated: Vec::new() };
        let lock = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = lock().pop().unwrap_or_default();
        let done = self.threads.install(|| {
            texts.chunks(limits::WINDOW_TEXTS).enumerate().try_for_each(|(at, window)| {
                self.window(window, at * limits::WINDOW_TEXTS, &call, &mut out, &mut buffers)
            })
        });
        lock().push(buffers);
        done.map(|()| out)
    }
}
