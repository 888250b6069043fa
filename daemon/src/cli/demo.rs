//! `sluice demo`: two real sites on this machine copy a lake, and follow a change.
//!
//! Invariant: everything happens in one folder and through this very program, started anew for each
//! step as a person would; whatever happens, the two daemons end with the demo.

mod compare;
mod sites;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use sluice_protocol::api::{ApiError, Failure};

use super::context::{Context, block_on};
use super::output::{Table, mib, seconds};
use super::{Ended, Result};
use sites::Sites;

/// The space's name in the demo.
const SPACE: &str = "acme";
/// Between the parts of a note; each gets a line of its own in the table.
const NOTE_BREAK: &str = "; ";
/// Most differences that are named.
const DIFFERENCES_SHOWN: usize = 10;

/// Let two sites on this machine copy a lake and follow a change, then compare both sides
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The folder to work in, new or empty [default: a fresh one in ./.demo]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// About how large the lake is, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    mib: u32,
    /// Leave the folder there, to look around in
    #[arg(long)]
    keep: bool,
}

/// Where the demo's lake comes from.
pub(super) struct Sample {
    pub(super) make: fn(&Path, u32) -> std::result::Result<(), String>,
    /// Changes the lake; one sentence for each thing done.
    pub(super) change: fn(&Path, u32) -> std::result::Result<Vec<String>, String>,
}

#[cfg(feature = "engine")]
fn sample() -> Result<Sample> {
    use sluice_indexer::sample::{Scale, change, make};
    Ok(Sample {
        make: |root, mib| make(root, 1, Scale { mib }).map_err(|e| e.to_string()),
        change: |root, step| change(root, step).map_err(|e| e.to_string()),
    })
}

#[cfg(not(feature = "engine"))]
fn sample() -> Result<Sample> {
    Err(ApiError::new(
        Failure::Error,
        "the demo makes Delta and Lance tables, and this build is without the table engine",
        "build with the default features: cargo build --bin sluice",
    ))
}

impl Demo {
    pub(super) fn run(self, context: &Context) -> Result<Ended> {
        let sample = sample()?;
        let folder = Folder::make(self.dir.as_deref(), self.keep)?;
        let mut story = Story::new(context.quiet || context.json);
        let told = block_on(async {
            tokio::select! {
                told = self.play(&folder.path, &sample, &mut story) => told,
                _ = tokio::signal::ctrl_c() => Err(ApiError::plain(Failure::Incomplete, "the demo was interrupted")),
            }
        });
        told?;
        let kept = folder.end();
        let value = json!({"ok": true, "steps": story.steps, "folder": kept});
        context.print_value(&value, || {
            let kept = kept.map(|p| format!("everything lies in {}\n", p.display())).unwrap_or_default();
            format!("\n{}\nboth sides are the same, file by file\n{kept}", story.table())
        });
        Ok(Ended::Good)
    }

    async fn play(&self, folder: &Path, sample: &Sample, story: &mut Story) -> Result<()> {
        let (source, copy) = (folder.join("source"), folder.join("copy"));
        let (make, mib) = (sample.make, self.mib);
        story.begin("make a lake: Delta, Lance, LoRA, JSON, text, CSV");
        off_thread({
            let source = source.clone();
            move || make(&source, mib)
        })
        .await?;
        story.end(compare::bytes_below(&source)?, "");

        story.begin("start two sites");
        let sites = Sites::start(folder).await?;
        story.end(0, "playground and cradle");
        first_copy(&sites, &source, &copy, story).await?;
        a_change(&sites, sample, &source, &copy, story).await?;

        story.begin("verify --deep at the cradle");
        let verified = sites.cradle.json(&["verify", SPACE, "--deep"]).await?;
        story.end(number(&verified, "bytes"), "every byte read, every table opened");
        sites.stop().await
    }
}

async fn first_copy(sites: &Sites, source: &Path, copy: &Path, story: &mut Story) -> Result<()> {
    story.begin("playground: space add");
    let taken = sites.playground.json(&["space", "add", SPACE, text(source)?]).await?;
    story.end(number(&taken, "bytes"), &format!("{} files", number(&taken, "files")));

    story.begin("playground: invite, cradle: join");
    let invited = sites.playground.json(&["invite", SPACE, "--read"]).await?;
    let ticket = invited["ticket"].as_str().unwrap_or_default();
    let joined = sites.cradle.json(&["join", ticket, "--into", text(copy)?]).await?;
    if joined["phrase"] != invited["phrase"] {
        return Err(ApiError::plain(Failure::Verification, "the two sites show different phrases"));
    }
    story.end(
        number(&joined, "bytes_moved"),
        &format!("same phrase: {}", joined["phrase"].as_str().unwrap_or_default()),
    );
    same(source, copy, story).await
}

async fn a_change(sites: &Sites, sample: &Sample, source: &Path, copy: &Path, story: &mut Story) -> Result<()> {
    story.begin("change the lake");
    let change = sample.change;
    let done = off_thread({
        let source = source.to_path_buf();
        move || change(&source, 1)
    })
    .await?;
    story.end(0, &done.join(NOTE_BREAK));

    story.begin("playground: snapshot");
    let taken = sites.playground.json(&["snapshot", SPACE]).await?;
    story.end(number(&taken, "read_bytes"), "read again");

    story.begin("cradle: sync");
    let synced = sites.cradle.json(&["sync", SPACE]).await?;
    let synced = &synced["spaces"][0];
    let compared = format!("moved; rsync would have moved {}", mib(number(synced, "rsync_bytes")));
    story.end(number(synced, "bytes_moved"), &compared);
    if synced["snapshot"] != taken["snapshot"] {
        return Err(ApiError::plain(Failure::Verification, "another version arrived than the one that was taken"));
    }
    same(source, copy, story).await
}

/// Compares both sides file by file.
async fn same(source: &Path, copy: &Path, story: &mut Story) -> Result<()> {
    story.begin("compare both sides by BLAKE3");
    let (source, copy) = (source.to_path_buf(), copy.to_path_buf());
    let compared = off_thread(move || compare::compare(&source, &copy).map_err(|e| e.to_string())).await?;
    if !compared.differences.is_empty() {
        let shown = compared.differences.iter().take(DIFFERENCES_SHOWN).cloned().collect::<Vec<_>>().join("; ");
        let error = format!("the two sides differ in {} files: {shown}", compared.differences.len());
        return Err(ApiError::plain(Failure::Verification, error));
    }
    story.end(compared.bytes, &format!("{} files are the same", compared.files));
    Ok(())
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| ApiError::new(Failure::Usage, "the demo's folder is not UTF-8", "name another with --dir"))
}

/// Runs what blocks beside the runtime.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string());
    ended.and_then(|done| done).map_err(|e| ApiError::plain(Failure::Error, e))
}

/// The folder of the demo; what it made is removed again, unless it is to be kept.
struct Folder {
    path: PathBuf,
    /// `.demo`, if we chose the place: removed too once nothing is in it.
    above: Option<PathBuf>,
    keep: bool,
}

impl Folder {
    fn make(wanted: Option<&Path>, keep: bool) -> Result<Self> {
        let (path, above) = match wanted {
            Some(path) => (path.to_path_buf(), None),
            None => {
                let above = PathBuf::from(".demo");
                (above.join(format!("run-{}", super::output::now_ms())), Some(above))
            }
        };
        let wrong = |e: std::io::Error| {
            ApiError::plain(Failure::Error, format!("the folder `{}` cannot be made: {e}", path.display()))
        };
        std::fs::create_dir_all(&path).map_err(wrong)?;
        if std::fs::read_dir(&path).map_err(wrong)?.next().is_some() {
            return Err(ApiError::new(
                Failure::Usage,
                format!("`{}` is not empty", path.display()),
                "name a new folder with --dir",
            ));
        }
        let path = path.canonicalize().map_err(wrong)?;
        Ok(Self { path, above, keep })
    }

    /// Ends the demo well; gives the folder if it stays.
    fn end(self) -> Option<PathBuf> {
        self.keep.then(|| self.path.clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // What cannot be removed is left where it can be seen.
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(above) = &self.above {
            let _ = std::fs::remove_dir(above);
        }
    }
}

/// What was done, and what it took.
struct Story {
    silent: bool,
    steps: Vec<Value>,
    now: Option<(String, Instant)>,
}

impl Story {
    fn new(silent: bool) -> Self {
        Self { silent, steps: Vec::new(), now: None }
    }

    fn begin(&mut self, step: &str) {
        if !self.silent {
            eprintln!("{step} …");
        }
        self.now = Some((step.to_string(), Instant::now()));
    }

    fn end(&mut self, bytes: u64, note: &str) {
        let Some((step, since)) = self.now.take() else { return };
        self.steps.push(json!({"step": step, "bytes": bytes, "seconds": since.elapsed().as_secs_f64(), "note": note}));
    }

    fn table(&self) -> String {
        let mut table = Table::new(&["step", ">bytes", ">time", "note"]);
        for step in &self.steps {
            let text = |key: &str| step[key].as_str().unwrap_or_default().to_string();
            let bytes = number(step, "bytes");
            let note = text("note");
            let mut notes = note.split(NOTE_BREAK);
            let mut note = || notes.next().map(str::to_string);
            table.row([
                text("step"),
                if bytes > 0 { mib(bytes) } else { String::new() },
                seconds(step["seconds"].as_f64().unwrap_or_default()),
                note().unwrap_or_default(),
            ]);
            while let Some(more) = note() {
                table.row([String::new(), String::new(), String::new(), more]);
            }
        }
        table.text()
    }
}
