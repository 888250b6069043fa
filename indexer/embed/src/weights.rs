//! From the tensors of a file to the layers of an encoder.
//!
//! Invariant: every tensor of the encoder is used and has the shape that the settings say; one that is missing, has
//! another shape or is not known is refused by its name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::encoder::{Encoder, Layer, Linear, Norm};
use crate::error::{Error, Result};
use crate::layout::{Activation, Layout, Module};
use crate::matmul::Matrix;
use crate::simd::Isa;
use crate::spec::Precision;
use crate::tensors::{Tensor, TensorFile};

/// What comes before and after the encoder's names in files that hold more than an encoder.
const PREFIXES: [&str; 4] = ["", "bert.", "roberta.", "model."];
const HEADS: [&str; 4] = ["pooler.", "cls.", "lm_head.", "classifier."];
const NUMBERS_ONLY: [&str; 2] = ["embeddings.position_ids", "embeddings.token_type_ids"];

/// Tensors by name, each taken once and with the shape that is expected.
struct Tensors {
    file: PathBuf,
    prefix: &'static str,
    found: HashMap<String, Tensor>,
}

impl Tensors {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bad = |why| Error::Tensors { file: self.file.clone(), why };
        let name = format!("{}{name}", self.prefix);
        match self.found.remove(&name) {
            None => Err(bad(format!("`{name}` is missing"))),
            Some(tensor) if tensor.shape != shape => {
                Err(bad(format!("`{name}` has the shape {:?}; by the settings it is {shape:?}", tensor.shape)))
            }
            Some(tensor) => Ok(tensor.data),
        }
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let gain = self.take(&format!("{name}.weight"), &[width])?;
        Ok(Norm { gain, shift: self.take(&format!("{name}.bias"), &[width])? })
    }

    /// Matrices that the same rows are multiplied with, side by side; each is `outputs` by `inputs`.
    fn linear(&mut self, precision: Precision, names: &[String], inputs: usize, outputs: usize) -> Result<Linear> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weights.push(self.take(&format!("{name}.weight"), &[outputs, inputs])?);
            bias.extend(self.take(&format!("{name}.bias"), &[outputs])?);
        }
        let parts: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        Ok(Linear { matrix: Matrix::new(precision, &parts, inputs), bias })
    }

    fn layer(&mut self, at: usize, layout: &Layout, precision: Precision) -> Result<Layer> {
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        let (hidden, wide) = (layout.hidden, layout.intermediate);
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: self.linear(precision, &qkv, hidden, hidden)?,
            out: self.linear(precision, &[name("attention.output.dense")], hidden, hidden)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"), hidden)?,
            up: self.linear(precision, &[name("intermediate.dense")], hidden, wide)?,
            down: self.linear(precision, &[name("output.dense")], wide, hidden)?,
            output_norm: self.norm(&name("output.LayerNorm"), hidden)?,
        })
    }
}

/// Loads the encoder's weights. Returns them and the file's hash.
///
/// # Errors
/// The file cannot be read, is damaged, or does not hold what the settings say.
pub fn encoder(file: &Path, layout: &Layout, precision: Precision, isa: Isa) -> Result<(Encoder, String)> {
    let bad = |why| Error::Tensors { file: file.to_owned(), why };
    let opened = open(file)?;
    let holds = |prefix: &&str| opened.names().any(|n| n == format!("{prefix}embeddings.word_embeddings.weight"));
    let prefix = PREFIXES.into_iter().find(holds);
    let prefix = prefix.ok_or_else(|| bad("`embeddings.word_embeddings.weight` is missing".to_owned()))?;
    let unused = |name: &str| {
        let inner = name.strip_prefix(prefix).unwrap_or(name);
        NUMBERS_ONLY.contains(&inner) || HEADS.iter().any(|head| inner.starts_with(head) || name.starts_with(head))
    };
    let (found, hash) = opened.read(|name| !unused(name))?;
    let mut tensors = Tensors { file: file.to_owned(), prefix, found };
    let hidden = layout.hidden;
    let mut encoder = Encoder {
        isa,
        hidden,
        heads: layout.heads,
        epsilon: layout.epsilon,
        first_position: layout.first_position,
        words: tensors.take("embeddings.word_embeddings.weight", &[layout.vocabulary, hidden])?,
        positions: tensors.take("embeddings.position_embeddings.weight", &[layout.positions, hidden])?,
        token_type: tensors.take("embeddings.token_type_embeddings.weight", &[layout.types, hidden])?,
        embedding_norm: tensors.norm("embeddings.LayerNorm", hidden)?,
        layers: Vec::new(),
    };
    encoder.token_type.truncate(hidden);
    for at in 0..layout.layers {
        encoder.layers.push(tensors.layer(at, layout, precision)?);
    }
    match tensors.found.keys().min() {
        Some(name) => {
            Err(bad(format!("`{name}` is not known to this encoder, or belongs to more layers than the settings say")))
        }
        None => Ok((encoder, hash)),
    }
}

fn open(file: &Path) -> Result<TensorFile> {
    match TensorFile::open(file) {
        Err(Error::Read { file, source }) if source.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing {
            file,
            hint: "weights are read from model.safetensors alone, neither from pytorch_model.bin nor from parts",
        }),
        other => other,
    }
}

/// A module after the pooling, with its weights.
pub enum Step {
    Normalize,
    Dense(Linear, Activation),
}

/// Loads the modules after the pooling; adds their files' hashes to the layout's.
///
/// # Errors
/// As for [`encoder`].
pub fn steps(root: &Path, layout: &mut Layout) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for module in &layout.modules {
        let Module::Dense { folder, inputs, outputs, bias, activation } = module else {
            steps.push(Step::Normalize);
            continue;
        };
        let name = format!("{folder}model.safetensors");
        let file = root.join(&name);
        let (found, hash) = open(&file)?.read(|_| true)?;
        layout.files.insert(name, hash);
        let mut tensors = Tensors { file, prefix: "", found };
        let weight = tensors.take("linear.weight", &[*outputs, *inputs])?;
        let bias = if *bias { tensors.take("linear.bias", &[*outputs])? } else { vec![0.0; *outputs] };
        let matrix = Matrix::new(Precision::F32, &[&weight], *inputs);
        steps.push(Step::Dense(Linear { matrix, bias }, *activation));
    }
    Ok(steps)
}
