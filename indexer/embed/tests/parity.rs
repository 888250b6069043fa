//! The real all-MiniLM-L6-v2 against vectors that sentence-transformers made (`reference/make.py`), and what must not
//! change a vector: batch, order, threads.

mod support;

use std::sync::atomic::AtomicBool;

use sluice_embed::{Embedder, Error, Isa, Kind, LoadOptions, Options, PackedEmbedder, Precision, Prompts};
use support::{cosine, minilm, texts};

const DIM: usize = 384;
const CUT: Options = Options { truncate: true, normalize: None, dimensions: None, cancel: None };

fn load(precision: Precision) -> PackedEmbedder {
    let options = LoadOptions { precision, threads: Some(2), ..LoadOptions::default() };
    PackedEmbedder::load(&minilm(), &options).expect("the model loads")
}

fn reference() -> Vec<Vec<f32>> {
    let bytes = include_bytes!("reference/minilm.f32");
    let floats: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    floats.chunks_exact(DIM).map(<[f32]>::to_vec).collect()
}

/// Embeds the reference texts of at most `longest` bytes, and says the worst cosine and its text.
fn worst(model: &PackedEmbedder, longest: usize) -> (f64, String) {
    let (texts, expected) = (texts(), reference());
    assert_eq!(texts.len(), expected.len());
    let kept = texts.into_iter().zip(expected).filter(|(text, _)| text.len() <= longest);
    let (texts, expected): (Vec<String>, Vec<Vec<f32>>) = kept.unzip();
    let given: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = model.embed_with(&given, Kind::Plain, &CUT).expect("the texts are embedded");
    let cosines = found.rows().zip(&expected).map(|(a, b)| cosine(a, b));
    let worst = cosines.zip(&texts).min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are texts");
    (worst.0, worst.1.chars().take(60).collect())
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let (cosine, text) = worst(&load(Precision::F32), usize::MAX);
    println!("f32: worst cosine {cosine:.9} for {text:?}");
    assert!(cosine >= 0.999_99, "{cosine} for {text:?}");
}

#[test]
fn bfloat16_stays_near_them() {
    let (cosine, text) = worst(&load(Precision::Bf16), usize::MAX);
    println!("bf16: worst cosine {cosine:.9} for {text:?}");
    assert!(cosine >= 0.999, "{cosine} for {text:?}");
}

#[test]
fn every_set_of_instructions_gives_them() {
    for isa in Isa::all() {
        for (precision, least) in [(Precision::F32, 0.999_99), (Precision::Bf16, 0.999)] {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            let model = PackedEmbedder::load_with(&minilm(), &options, isa).expect("the model loads");
            let (cosine, text) = worst(&model, 100);
            println!("{isa:?} {precision:?}: worst cosine {cosine:.9}");
            assert!(cosine >= least, "{isa:?} {precision:?}: {cosine} for {text:?}");
        }
    }
}

#[test]
fn neighbours_order_and_threads_change_no_bit() {
    let texts = texts();
    let given: Vec<&str> = texts.iter().map(String::as_str).collect();
    for precision in [Precision::F32, Precision::Bf16] {
        let model = load(precision);
        let together = model.embed_with(&given, Kind::Plain, &CUT).expect("the texts are embedded");
        for (text, expected) in given.iter().zip(together.rows()) {
            let alone = model.embed_with(&[text], Kind::Plain, &CUT).expect("the text is embedded");
            assert!(alone.data == expected, "{precision:?}: alone, another vector for {text:?}");
        }
        let backwards: Vec<&str> = given.iter().rev().copied().collect();
        let options = LoadOptions { precision, threads: Some(3), batch_tokens: 70, ..LoadOptions::default() };
        let other = PackedEmbedder::load(&minilm(), &options).expect("the model loads");
        let other = other.embed_with(&backwards, Kind::Plain, &CUT).expect("the texts are embedded");
        assert!(other.rows().rev().eq(together.rows()), "{precision:?}: backwards in small batches, other vectors");
        assert!(other.tokens.iter().rev().eq(&together.tokens));
    }
}

#[test]
fn long_texts_are_refused_or_cut() {
    let model = load(Precision::F32);
    let long = "word ".repeat(300);
    let refused = model.embed(&["short", &long], Kind::Plain).expect_err("300 words are too many");
    assert_eq!(
        refused.to_string(),
        "text 1 has 302 tokens, more than the 256 that the model takes: shorten it or allow truncation"
    );
    let cut = model.embed_with(&["short", &long], Kind::Plain, &CUT).expect("it is cut");
    assert_eq!((cut.tokens, cut.truncated), (vec![3, 256], vec![1]));
    let whole = model.embed(&["word ".repeat(254).as_str()], Kind::Plain).expect("254 words just fit");
    assert_eq!(whole.tokens, [256]);
    let huge = "x".repeat(sluice_embed::limits::TEXT_BYTES + 1);
    assert!(matches!(model.embed_with(&[&huge], Kind::Plain, &CUT), Err(Error::TextTooLarge { index: 0, .. })));
}

#[test]
fn prompts_go_before_the_text() {
    let by_name = [("query", "query: "), ("passage", "passage: ")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let prompts = Some(Prompts { by_name: by_name.into(), default: None });
    let options = LoadOptions { prompts, ..LoadOptions::default() };
    let model = PackedEmbedder::load(&minilm(), &options).expect("the model loads");
    let vector = |text: &str, kind| model.embed(&[text], kind).expect("it is embedded");
    let text = "how blocks are fetched";
    assert_eq!(vector(text, Kind::Query), vector("query: how blocks are fetched", Kind::Plain));
    assert_eq!(vector(text, Kind::Passage), vector("passage: how blocks are fetched", Kind::Plain));
    assert_ne!(vector(text, Kind::Query).data, vector(text, Kind::Plain).data);
}

#[test]
fn a_caller_chooses_length_and_dimensions() {
    let model = load(Precision::F32);
    let text = ["An index is carried with its table."];
    let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let raw = Options { normalize: Some(false), ..CUT };
    let raw = model.embed_with(&text, Kind::Plain, &raw).expect("it is embedded");
    assert!((length(&raw.data) - 1.0).abs() > 0.1, "the model's own length is another");
    let short = Options { dimensions: Some(100), ..CUT };
    let short = model.embed_with(&text, Kind::Plain, &short).expect("it is embedded");
    assert_eq!((short.dim, short.data.len()), (100, 100));
    assert!((length(&short.data) - 1.0).abs() < 1e-6);
    assert!(cosine(&short.data, &raw.data[..100]) > 0.999_999);
    for asked in [0, DIM + 1] {
        let options = Options { dimensions: Some(asked), ..CUT };
        assert!(matches!(model.embed_with(&text, Kind::Plain, &options), Err(Error::Dimensions { .. })), "{asked}");
    }
    assert_eq!(model.embed(&[], Kind::Plain).expect("nothing is nothing").data.len(), 0);
}

#[test]
fn a_raised_flag_ends_a_call() {
    let flag = AtomicBool::new(true);
    let options = Options { cancel: Some(&flag), ..CUT };
    assert!(matches!(load(Precision::F32).embed_with(&["a"], Kind::Plain, &options), Err(Error::Cancelled)));
}

#[test]
fn the_spec_names_what_was_loaded() {
    let model = load(Precision::F32);
    let spec = model.spec();
    assert_eq!((spec.dim, spec.max_tokens, spec.layers, spec.heads, spec.normalized), (DIM, 256, 6, 12, true));
    let weights = std::fs::read(minilm().join("model.safetensors")).expect("the weights are there");
    assert_eq!(spec.files["model.safetensors"], blake3::hash(&weights).to_hex().as_str());
    let names: Vec<&str> = spec.files.keys().map(String::as_str).collect();
    let expected = [
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    let json = serde_json::to_string(spec).expect("a spec is written");
    assert_eq!(&serde_json::from_str::<sluice_embed::ModelSpec>(&json).expect("and read"), spec);
}
