//! What a site is doing right now, and one job at a time for each space.
//!
//! Invariant: a space has at most one job that changes it. A person's command waits while the site
//! itself works there and goes before the site's next job; two persons' commands do not wait for each
//! other: the second is told which one runs. A job that ends, however it ends, leaves the list.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sluice_protocol::api::{ApiError, Failure, JobInfo, Progress, ProgressSink, Unwatched};
use sluice_store::watch::Watch;
use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::rate::{self, Rate};

/// How long a person's command waits for an automatic job.
const PERSON_WAITS_MAX: Duration = Duration::from_secs(600);
/// How often a person who waits is shown how far the automatic job is.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// The jobs of a site.
#[derive(Clone, Default)]
pub struct Jobs {
    table: Arc<Mutex<Table>>,
    /// Somebody left the table.
    left: Arc<Notify>,
    stopping: Arc<AtomicBool>,
}

/// A job, and how fast its stage goes.
struct Running {
    info: JobInfo,
    rate: Rate,
}

impl Running {
    /// As of now.
    fn told(&self) -> JobInfo {
        let JobInfo { bytes, bytes_total, .. } = self.info;
        let bytes_per_s = self.rate.per_s(bytes, Instant::now()).filter(|_| bytes_total > 0);
        let left_s = rate::seconds(bytes_total.saturating_sub(bytes), bytes_per_s);
        JobInfo { bytes_per_s, left_s, ..self.info.clone() }
    }
}

#[derive(Default)]
struct Table {
    running: BTreeMap<String, Running>,
    /// Persons' commands that wait for a space.
    waiting: BTreeMap<String, usize>,
}

impl Jobs {
    /// Begins a person's job on a space at once; refused while another one runs there.
    pub fn begin(&self, space: &str, stage: &str, sink: Arc<dyn ProgressSink>) -> Result<Arc<Job>, ApiError> {
        let mut table = self.table();
        if let Some(other) = table.running.get(space) {
            return Err(busy(&other.info));
        }
        Ok(self.enter(&mut table, space, stage, sink, false))
    }

    /// Begins a person's job on a space; waits for an automatic one, ten minutes at most, and shows how far it is.
    pub async fn begin_in_turn(
        &self,
        space: &str,
        stage: &str,
        sink: Arc<dyn ProgressSink>,
    ) -> Result<Arc<Job>, ApiError> {
        let _turn = Turn::take(self, space);
        let deadline = tokio::time::Instant::now() + PERSON_WAITS_MAX;
        let mut told = false;
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            let running = self.table().running.get(space).map(Running::told);
            match running {
                None => {
                    // Another person may have been quicker: then that one is named.
                    return self.begin(space, stage, sink);
                }
                Some(other) if !other.automatic || tokio::time::Instant::now() >= deadline => return Err(busy(&other)),
                Some(other) => show(&sink, &other, &mut told),
            }
            let _ = tokio::time::timeout(SHOW_EVERY, left).await;
        }
    }

    /// Begins a job that nobody asked for; none while another one runs there or a person waits.
    pub fn begin_automatic(&self, space: &str, stage: &str) -> Option<Arc<Job>> {
        let mut table = self.table();
        let taken = table.running.contains_key(space) || table.waiting.contains_key(space);
        (!taken && !self.is_stopping()).then(|| self.enter(&mut table, space, stage, Arc::new(Unwatched), true))
    }

    /// Returns when nothing runs on the space and nobody waits for it.
    pub async fn idle(&self, space: &str) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            {
                let table = self.table();
                if !table.running.contains_key(space) && !table.waiting.contains_key(space) {
                    return;
                }
            }
            left.await;
        }
    }

    fn enter(
        &self,
        table: &mut Table,
        space: &str,
        stage: &str,
        sink: Arc<dyn ProgressSink>,
        automatic: bool,
    ) -> Arc<Job> {
        let info = JobInfo {
            space: space.to_string(),
            stage: stage.to_string(),
            files: 0,
            files_total: 0,
            bytes: 0,
            bytes_total: 0,
            since_ms: now_ms(),
            automatic,
            bytes_per_s: None,
            left_s: None,
        };
        table.running.insert(space.to_string(), Running { info, rate: Rate::default() });
        Arc::new(Job { space: space.to_string(), automatic, jobs: self.clone(), sink })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while held")
    }

    /// What is going on now.
    pub fn list(&self) -> Vec<JobInfo> {
        self.table().running.values().map(Running::told).collect()
    }

    /// Whether a job runs on the space.
    pub fn is_busy(&self, space: &str) -> bool {
        self.table().running.contains_key(space)
    }

    /// Asks every job to stop as soon as it can.
    pub fn stop_all(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the site is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

fn busy(other: &JobInfo) -> ApiError {
    ApiError::new(
        Failure::Incomplete,
        format!("`{}` is busy: {} is going on", other.space, other.stage),
        "wait until it is done; `sluice status` shows how far it is",
    )
}

/// Shows a person who waits what for.
fn show(sink: &Arc<dyn ProgressSink>, other: &JobInfo, told: &mut bool) {
    if !*told {
        *told = true;
        let text =
            format!("`{}` is being brought up to date by the site itself; this waits until that is done", other.space);
        sink.report(Progress::Note { text });
    }
    let JobInfo { stage, files, files_total, bytes, bytes_total, .. } = other.clone();
    sink.report(Progress::Amount { stage, files, files_total, bytes, bytes_total });
}

/// A person's place before the next automatic job of a space.
struct Turn<'a> {
    jobs: &'a Jobs,
    space: String,
}

impl<'a> Turn<'a> {
    fn take(jobs: &'a Jobs, space: &str) -> Self {
        *jobs.table().waiting.entry(space.to_string()).or_default() += 1;
        Self { jobs, space: space.to_string() }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut table = self.jobs.table();
        if let Some(count) = table.waiting.get_mut(&self.space) {
            *count -= 1;
            if *count == 0 {
                table.waiting.remove(&self.space);
            }
        }
        drop(table);
        self.jobs.left.notify_waiters();
    }
}

/// A running job: reports progress to whoever asked for it and to `status`.
pub struct Job {
    space: String,
    automatic: bool,
    jobs: Jobs,
    sink: Arc<dyn ProgressSink>,
}

impl Job {
    /// Whether nobody asked for it.
    pub fn is_automatic(&self) -> bool {
        self.automatic
    }

    /// The job enters a stage of the flow.
    pub fn stage(&self, stage: &str) {
        self.update(|info| {
            info.stage = stage.to_string();
            (info.files, info.files_total, info.bytes, info.bytes_total) = (0, 0, 0, 0);
        });
        self.running(|running| running.rate = Rate::default());
        self.sink.report(Progress::Stage { stage: stage.to_string(), space: self.space.clone() });
    }

    fn update(&self, change: impl FnOnce(&mut JobInfo)) {
        self.running(|running| {
            change(&mut running.info);
            running.rate.note(running.info.bytes, Instant::now());
        });
    }

    fn running(&self, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.jobs.table().running.get_mut(&self.space) {
            change(running);
        }
    }
}

impl Watch for Job {
    fn amount(&self, stage: &str, files: u64, files_total: u64, bytes: u64, bytes_total: u64) {
        self.update(|info| {
            (info.files, info.files_total, info.bytes, info.bytes_total) = (files, files_total, bytes, bytes_total);
        });
        self.sink.report(Progress::Amount { stage: stage.to_string(), files, files_total, bytes, bytes_total });
    }

    fn note(&self, text: String) {
        match self.automatic {
            false => tracing::info!(space = %self.space, "{text}"),
            // The same every few seconds under a busy writer.
            true => tracing::debug!(space = %self.space, "{text}"),
        }
        self.sink.report(Progress::Note { text });
    }

    fn cancelled(&self) -> bool {
        self.jobs.is_stopping()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.jobs.table().running.remove(&self.space);
        self.jobs.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_a_space_and_none_left_behind() {
        let jobs = Jobs::default();
        let job = jobs.begin("acme", "scan", Arc::new(Unwatched)).unwrap();
        let refused = jobs.begin("acme", "sync", Arc::new(Unwatched)).err().unwrap();
        assert!(refused.error.contains("scan"), "{refused}");
        assert!(jobs.begin("other", "sync", Arc::new(Unwatched)).is_ok());
        job.stage("chunk");
        assert_eq!(jobs.list()[0].stage, "chunk");
        drop(job);
        assert!(!jobs.is_busy("acme") && jobs.begin("acme", "sync", Arc::new(Unwatched)).is_ok());
    }

    #[tokio::test]
    async fn a_person_waits_for_the_site_and_goes_before_it() {
        let jobs = Jobs::default();
        let own = jobs.begin_automatic("acme", "sync").unwrap();
        assert!(jobs.begin_automatic("acme", "sync").is_none());
        assert!(jobs.list()[0].automatic);
        let person = tokio::spawn({
            let jobs = jobs.clone();
            async move { jobs.begin_in_turn("acme", "scan", Arc::new(Unwatched)).await }
        });
        while jobs.table().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        drop(own);
        assert!(jobs.begin_automatic("acme", "sync").is_none(), "the person goes first");
        let job = person.await.unwrap().unwrap();
        assert!(!jobs.list()[0].automatic);
        let second = jobs.begin_in_turn("acme", "sync", Arc::new(Unwatched)).await.err().unwrap();
        assert!(second.error.contains("busy"), "{second}");
        drop(job);
        jobs.idle("acme").await;
        assert!(jobs.begin_automatic("acme", "sync").is_some());
        jobs.stop_all();
        assert!(jobs.begin_automatic("acme", "sync").is_none(), "nothing begins while the site stops");
    }
}
