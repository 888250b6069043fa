//! Reading the folder of a model as sentence-transformers writes it.
//!
//! Both the layout of its versions 2 to 5 and that of version 6 are read: the type of a module is known by its last
//! segment, and the pooling has the old or the new keys.
//!
//! Invariant: a setting that would change a vector and is not carried out here is refused with its file, key and value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::limits;
use crate::spec::{Family, Pooling, Prompts};

/// A dense module's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Identity,
    Tanh,
}

/// A module after the pooling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Module {
    Normalize,
    /// Weights in `folder`; a row of `inputs` floats becomes one of `outputs`.
    Dense {
        folder: String,
        inputs: usize,
        outputs: usize,
        bias: bool,
        activation: Activation,
    },
}

/// What the settings of a model say.
#[derive(Debug)]
pub struct Layout {
    /// The folder with the encoder, relative to the model's: mostly empty.
    pub folder: String,
    pub family: Family,
    pub hidden: usize,
    pub heads: usize,
    pub layers: usize,
    pub intermediate: usize,
    pub epsilon: f32,
    pub vocabulary: usize,
    pub positions: usize,
    pub types: usize,
    pub first_position: u32,
    pub max_tokens: usize,
    pub lowercase: bool,
    pub pooling: Pooling,
    pub pools_prompt: bool,
    pub modules: Vec<Module>,
    pub prompts: Prompts,
    /// The hashes of the files read so far.
    pub files: BTreeMap<String, String>,
}

/// The files of a model's folder, read and hashed.
pub struct Folder<'a> {
    root: &'a Path,
    pub files: BTreeMap<String, String>,
}

impl<'a> Folder<'a> {
    pub fn new(root: &'a Path) -> Self {
        Self { root, files: BTreeMap::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// All bytes of a file of at most `limit` bytes; `None` if it is not there.
    pub fn bytes(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let file = self.path(name);
        let read = |source| Error::Read { file: self.root.join(name), source };
        let handle = match std::fs::File::open(&file) {
            Ok(handle) => handle,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(read(e)),
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(handle, limit + 1), &mut bytes).map_err(read)?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { file, bytes: bytes.len() as u64, limit });
        }
        self.files.insert(name.to_owned(), blake3::hash(&bytes).to_hex().to_string());
        Ok(Some(bytes))
    }

    /// A settings file that is a JSON object.
    fn settings(&mut self, name: &str) -> Result<Option<Settings>> {
        let Some(bytes) = self.bytes(name, limits::SETTINGS_BYTES)? else { return Ok(None) };
        let file = self.path(name);
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Some(Settings { file, map })),
            Ok(other) => Err(refuse(&file, "the file", &other, "a JSON object is expected")),
            Err(e) => Err(refuse(&file, "the file", &Value::Null, &format!("it is not JSON: {e}"))),
        }
    }

    fn needed(&mut self, name: &str, hint: &'static str) -> Result<Settings> {
        self.settings(name)?.ok_or_else(|| Error::Missing { file: self.path(name), hint })
    }
}

fn refuse(file: &Path, key: &str, value: &Value, why: &str) -> Error {
    let mut value = value.to_string();
    if value.len() > 100 {
        value = value.chars().take(99).chain(['…']).collect();
    }
    Error::Refused { file: file.to_owned(), key: key.to_owned(), value, why: why.to_owned() }
}

/// A JSON object and the file that it is from.
struct Settings {
    file: PathBuf,
    map: Map<String, Value>,
}

impl Settings {
    fn value(&self, key: &str) -> &Value {
        self.map.get(key).unwrap_or(&Value::Null)
    }

    fn refuse(&self, key: &str, why: &str) -> Error {
        refuse(&self.file, key, self.value(key), why)
    }

    /// A whole number of 1 to `limit`.
    fn size(&self, key: &str, limit: usize) -> Result<usize> {
        let size = self.value(key).as_u64().and_then(|n| usize::try_from(n).ok());
        let why = || self.refuse(key, &format!("a whole number of 1 to {limit} is expected"));
        size.filter(|n| (1..=limit).contains(n)).ok_or_else(why)
    }

    /// True or false, or `default` where the key is missing.
    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            Value::Null => Ok(default),
            value => value.as_bool().ok_or_else(|| self.refuse(key, "true or false is expected")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            Value::Null => Ok(None),
            value => value.as_str().map(Some).ok_or_else(|| self.refuse(key, "a text is expected")),
        }
    }

    /// The key is missing, null or one of these texts.
    fn one_of(&self, key: &str, known: &[&str]) -> Result<()> {
        match self.value(key) {
            Value::Null => Ok(()),
            Value::String(text) if known.contains(&text.as_str()) => Ok(()),
            _ => Err(self.refuse(key, &format!("this encoder carries out {}", known.join(", ")))),
        }
    }

    fn only(&self, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.refuse(key, "this key is not known")),
            None => Ok(()),
        }
    }
}

/// Reads all settings of the model in a folder.
///
/// # Errors
/// A file is missing or cannot be read, or a setting is refused.
pub fn read(root: &Path) -> Result<Layout> {
    let mut folder = Folder::new(root);
    let modules = modules(&mut folder)?;
    let (encoder, pooling) = (&modules[0].1, &modules[1].1);
    let mut layout = encoder_layout(&mut folder, encoder)?;
    limit_tokens(&mut folder, &mut layout)?;
    (layout.pooling, layout.pools_prompt) = pooling_of(&mut folder, pooling, layout.hidden)?;
    let mut width = layout.hidden;
    for (kind, path) in &modules[2..] {
        let module = if kind == "Dense" { dense(&mut folder, path, width)? } else { Module::Normalize };
        if let Module::Dense { outputs, .. } = module {
            width = outputs;
        }
        layout.modules.push(module);
    }
    layout.prompts = prompts(&mut folder)?;
    layout.files = folder.files;
    Ok(layout)
}

/// The last segment of each module's type, and its folder: an encoder, a pooling, then any number of others.
fn modules(folder: &mut Folder) -> Result<Vec<(String, String)>> {
    const FILE: &str = "modules.json";
    let file = folder.path(FILE);
    let hint = "a model is a folder as sentence-transformers saves it";
    let bytes = folder.bytes(FILE, limits::SETTINGS_BYTES)?.ok_or(Error::Missing { file: file.clone(), hint })?;
    let list: Vec<Map<String, Value>> = serde_json::from_slice(&bytes)
        .map_err(|e| refuse(&file, "the file", &Value::Null, &format!("it is not a JSON list of objects: {e}")))?;
    let mut found = Vec::new();
    for (at, map) in list.into_iter().enumerate() {
        let module = Settings { file: file.clone(), map };
        module.only(&["idx", "name", "path", "type"])?;
        let kind = module.text("type")?.unwrap_or_default();
        let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
        let fits = match at {
            0 => kind == "Transformer",
            1 => kind == "Pooling",
            _ => kind == "Normalize" || kind == "Dense",
        };
        if !fits || at >= limits::MODULES {
            return Err(
                module.refuse("type", "a Transformer, a Pooling, then Dense and Normalize modules are carried out")
            );
        }
        let path = module.text("path")?.unwrap_or_default().to_owned();
        if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\\') {
            return Err(module.refuse("path", "a module lies in the model's folder"));
        }
        found.push((kind, if path.is_empty() { path } else { format!("{}/", path.trim_end_matches('/')) }));
    }
    if found.len() < 2 {
        return Err(refuse(
            &file,
            "the file",
            &Value::from(found.len()),
            "at least a Transformer and a Pooling are needed",
        ));
    }
    Ok(found)
}

/// The geometry, from `config.json`. Keys that are not named here do not change what is computed by these families;
/// the tensors are compared with the geometry later.
fn encoder_layout(folder: &mut Folder, path: &str) -> Result<Layout> {
    let config = folder.needed(&format!("{path}config.json"), "it tells the encoder's sizes")?;
    let family = match config.text("model_type")? {
        Some("bert") => Family::Bert,
        Some("xlm-roberta") => Family::XlmRoberta,
        _ => return Err(config.refuse("model_type", "this encoder carries out bert and xlm-roberta")),
    };
    config.one_of("hidden_act", &["gelu"])?;
    config.one_of("position_embedding_type", &["absolute"])?;
    for key in ["is_decoder", "add_cross_attention"] {
        if config.flag(key, false)? {
            return Err(config.refuse(key, "an encoder is expected"));
        }
    }
    for key in ["quantization_config", "embedding_size"] {
        if !config.value(key).is_null() {
            return Err(config.refuse(key, "this is not carried out"));
        }
    }
    let hidden = config.size("hidden_size", limits::HIDDEN)?;
    let heads = config.size("num_attention_heads", hidden)?;
    if hidden % heads != 0 {
        return Err(config.refuse("num_attention_heads", &format!("it does not divide the hidden size {hidden}")));
    }
    let epsilon = config.value("layer_norm_eps").as_f64().filter(|e| (0.0..1.0).contains(e));
    let positions = config.size("max_position_embeddings", limits::TEXT_TOKENS * 2)?;
    let first_position = match family {
        Family::Bert => 0,
        Family::XlmRoberta => config.size("pad_token_id", positions.saturating_sub(2))? + 1,
    };
    Ok(Layout {
        folder: path.to_owned(),
        family,
        hidden,
        heads,
        layers: config.size("num_hidden_layers", limits::LAYERS)?,
        intermediate: config.size("intermediate_size", limits::INTERMEDIATE)?,
        epsilon: epsilon.ok_or_else(|| config.refuse("layer_norm_eps", "a small number is expected"))? as f32,
        vocabulary: config.size("vocab_size", limits::VOCABULARY)?,
        positions,
        types: config.size("type_vocab_size", 1024)?,
        first_position: first_position as u32,
        max_tokens: positions - first_position,
        lowercase: false,
        pooling: Pooling::Mean,
        pools_prompt: true,
        modules: Vec::new(),
        prompts: Prompts::default(),
        files: BTreeMap::new(),
    })
}

/// How many tokens a text may have: what sentence-transformers says, else the tokenizer, never more than positions.
fn limit_tokens(folder: &mut Folder, layout: &mut Layout) -> Result<()> {
    let mut said = None;
    for name in ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json"] {
        let Some(config) = folder.settings(&format!("{}{name}", layout.folder))? else { continue };
        config.only(&[
            "max_seq_length",
            "do_lower_case",
            "transformer_task",
            "modality_config",
            "module_output_name",
            "processing_kwargs",
            "unpad_inputs",
            "query_length",
            "document_length",
            "query_expansion",
        ])?;
        config.one_of("transformer_task", &["feature-extraction"])?;
        config.one_of("module_output_name", &["token_embeddings"])?;
        for key in ["query_length", "document_length", "query_expansion"] {
            if !config.value(key).is_null() {
                return Err(config.refuse(key, "only models with one vector for a text are carried out"));
            }
        }
        let ways = serde_json::json!({"text": {"method": "forward", "method_output_name": "last_hidden_state"}});
        if !config.value("modality_config").is_null() && *config.value("modality_config") != ways {
            return Err(config.refuse("modality_config", "only texts and the last layer's output are carried out"));
        }
        if config.value("processing_kwargs").as_object().is_some_and(|map| !map.is_empty()) {
            return Err(config.refuse("processing_kwargs", "this is not carried out"));
        }
        layout.lowercase = config.flag("do_lower_case", false)?;
        if !config.value("max_seq_length").is_null() {
            said = Some(config.size("max_seq_length", usize::MAX)?);
        }
        break;
    }
    let tokenizer = folder.settings(&format!("{}tokenizer_config.json", layout.folder))?;
    // Some tokenizers say 1e30 and mean no limit.
    let tokenizer = tokenizer.and_then(|t| t.value("model_max_length").as_u64()).map(|n| n.max(1) as usize);
    layout.max_tokens = said.or(tokenizer).unwrap_or(usize::MAX).min(layout.max_tokens).min(limits::TEXT_TOKENS);
    if layout.max_tokens < 3 {
        let file = folder.path(&format!("{}sentence_bert_config.json", layout.folder));
        return Err(refuse(&file, "max_seq_length", &Value::from(layout.max_tokens), "three tokens are the least"));
    }
    Ok(())
}

/// The way of pooling, and whether a prompt's tokens take part.
fn pooling_of(folder: &mut Folder, path: &str, hidden: usize) -> Result<(Pooling, bool)> {
    const PREFIX: &str = "pooling_mode_";
    let config = folder.needed(&format!("{path}config.json"), "it tells how tokens are pooled")?;
    let mut modes = Vec::new();
    for (key, value) in &config.map {
        match (key.strip_prefix(PREFIX), value) {
            (Some(mode), Value::Bool(true)) => modes.push((key, mode.trim_end_matches("_tokens"))),
            (Some(_), Value::Bool(false)) => (),
            (None, Value::String(mode)) if key == "pooling_mode" => modes.push((key, mode)),
            (None, Value::Array(list)) if key == "pooling_mode" => {
                modes.extend(list.iter().map(|mode| (key, mode.as_str().unwrap_or_default())));
            }
            (None, _) if ["include_prompt", "word_embedding_dimension", "embedding_dimension"].contains(&&**key) => (),
            _ => return Err(config.refuse(key, "this key or value is not known")),
        }
    }
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        if !config.value(key).is_null() && config.value(key).as_u64() != Some(hidden as u64) {
            return Err(config.refuse(key, &format!("the encoder's vectors have {hidden} dimensions")));
        }
    }
    let [(key, mode)] = modes[..] else {
        let why = format!("{} ways of pooling are asked for; one is carried out", modes.len());
        return Err(refuse(&config.file, "pooling_mode", &Value::Object(config.map.clone()), &why));
    };
    let pooling = match mode {
        "mean" => Pooling::Mean,
        "cls" | "cls_token" => Pooling::Cls,
        "max" => Pooling::Max,
        "lasttoken" => Pooling::LastToken,
        _ => return Err(config.refuse(key, "this encoder carries out mean, cls, max and lasttoken")),
    };
    Ok((pooling, config.flag("include_prompt", true)?))
}

fn dense(folder: &mut Folder, path: &str, width: usize) -> Result<Module> {
    let config = folder.needed(&format!("{path}config.json"), "it tells the sizes of the dense module")?;
    config.only(&[
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
        "use_residual",
    ])?;
    config.one_of("module_input_name", &["sentence_embedding"])?;
    config.one_of("module_output_name", &["sentence_embedding"])?;
    if config.flag("use_residual", false)? {
        return Err(config.refuse("use_residual", "this is not carried out"));
    }
    let inputs = config.size("in_features", limits::INTERMEDIATE)?;
    if inputs != width {
        return Err(config.refuse("in_features", &format!("what comes before it has {width}")));
    }
    let activation = match config.text("activation_function")?.unwrap_or("Tanh").rsplit('.').next() {
        Some("Identity") => Activation::Identity,
        Some("Tanh") => Activation::Tanh,
        _ => return Err(config.refuse("activation_function", "Tanh and Identity are carried out")),
    };
    let outputs = config.size("out_features", limits::INTERMEDIATE)?;
    Ok(Module::Dense { folder: path.to_owned(), inputs, outputs, bias: config.flag("bias", true)?, activation })
}

fn prompts(folder: &mut Folder) -> Result<Prompts> {
    let Some(config) = folder.settings("config_sentence_transformers.json")? else { return Ok(Prompts::default()) };
    config.only(&["__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type"])?;
    config.one_of("model_type", &["SentenceTransformer"])?;
    let mut prompts = Prompts { default: config.text("default_prompt_name")?.map(str::to_owned), ..Prompts::default() };
    if let Value::Object(map) = config.value("prompts") {
        for (name, prompt) in map {
            let prompt = prompt.as_str().ok_or_else(|| config.refuse("prompts", "prompts are texts"))?;
            prompts.by_name.insert(name.clone(), prompt.to_owned());
        }
    } else if !config.value("prompts").is_null() {
        return Err(config.refuse("prompts", "an object of names and texts is expected"));
    }
    match &prompts.default {
        Some(name) if !prompts.by_name.contains_key(name) => {
            Err(config.refuse("default_prompt_name", "`prompts` has none of this name"))
        }
        _ => Ok(prompts),
    }
}
