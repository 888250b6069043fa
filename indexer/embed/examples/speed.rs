//! Times the encoder: reads texts, one a line, and writes their vectors; `tests/bench/embedding.py` runs it beside
//! sentence-transformers.
//!
//!     speed MODEL TEXTS [f32|bf16] [ROUNDS] [VECTORS]
//!
//! Prints one line for each round: texts, tokens and seconds. VECTORS gets the vectors as little-endian floats.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use sluice_embed::{Embedder, Kind, LoadOptions, Options, PackedEmbedder, Precision};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, rest @ ..] = &args[..] else {
        return Err("usage: speed MODEL TEXTS [f32|bf16] [ROUNDS] [VECTORS]".into());
    };
    let precision = match rest.first().map(String::as_str) {
        None | Some("f32") => Precision::F32,
        Some("bf16") => Precision::Bf16,
        Some(other) => return Err(format!("{other}: f32 or bf16").into()),
    };
    let rounds: usize = rest.get(1).map_or(Ok(1), |n| n.parse())?;
    let batch_tokens = std::env::var("BATCH_TOKENS").ok().map(|n| n.parse()).transpose()?;
    let defaults = LoadOptions { precision, ..LoadOptions::default() };
    let batch_tokens = batch_tokens.unwrap_or(defaults.batch_tokens);
    let model = PackedEmbedder::load(Path::new(model), &LoadOptions { batch_tokens, ..defaults })?;
    let texts = std::fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().collect();
    let options = Options { truncate: true, ..Options::default() };
    let mut vectors = model.embed_with(&texts[..texts.len().min(100)], Kind::Plain, &options)?;
    for _ in 0..rounds {
        let start = Instant::now();
        vectors = model.embed_with(&texts, Kind::Plain, &options)?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens: u64 = vectors.tokens.iter().map(|&n| u64::from(n)).sum();
        println!("{} {tokens} {seconds:.6}", texts.len());
    }
    if let Some(to) = rest.get(2) {
        let bytes: Vec<u8> = vectors.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(to, bytes)?;
    }
    Ok(())
}
