//! What a site is doing right now, and one job at a time for each space.
//!
//! Invariant: a space has at most one job that changes it; a second caller is told which one runs,
//! and a job that ends, however it ends, leaves the list.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sluice_protocol::api::{ApiError, Failure, JobInfo, Progress, ProgressSink};
use sluice_store::watch::Watch;

use crate::clock::now_ms;

/// The jobs of a site.
#[derive(Clone, Default)]
pub struct Jobs {
    running: Arc<Mutex<BTreeMap<String, JobInfo>>>,
    stopping: Arc<AtomicBool>,
}

impl Jobs {
    /// Begins a job on a space; refused while another one runs there.
    pub fn begin(&self, space: &str, stage: &str, sink: Arc<dyn ProgressSink>) -> Result<Arc<Job>, ApiError> {
        let mut running = self.running.lock().expect("no panic while held");
        if let Some(other) = running.get(space) {
            return Err(ApiError::new(
                Failure::Incomplete,
                format!("`{space}` is busy: {} is going on", other.stage),
                "wait until it is done; `sluice status` shows how far it is",
            ));
        }
        let info = JobInfo {
            space: space.to_string(),
            stage: stage.to_string(),
            files: 0,
            files_total: 0,
            bytes: 0,
            bytes_total: 0,
            since_ms: now_ms(),
        };
        running.insert(space.to_string(), info);
        Ok(Arc::new(Job { space: space.to_string(), jobs: self.clone(), sink }))
    }

    /// What is going on now.
    pub fn list(&self) -> Vec<JobInfo> {
        self.running.lock().expect("no panic while held").values().cloned().collect()
    }

    /// Whether a job runs on the space.
    pub fn is_busy(&self, space: &str) -> bool {
        self.running.lock().expect("no panic while held").contains_key(space)
    }

    /// Asks every job to stop as soon as it can.
    pub fn stop_all(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// A running job: reports progress to whoever asked for it and to `status`.
pub struct Job {
    space: String,
    jobs: Jobs,
    sink: Arc<dyn ProgressSink>,
}

impl Job {
    /// The job enters a stage of the flow.
    pub fn stage(&self, stage: &str) {
        self.update(|info| {
            info.stage = stage.to_string();
            (info.files, info.files_total, info.bytes, info.bytes_total) = (0, 0, 0, 0);
        });
        self.sink.report(Progress::Stage { stage: stage.to_string(), space: self.space.clone() });
    }

    fn update(&self, change: impl FnOnce(&mut JobInfo)) {
        let mut running = self.jobs.running.lock().expect("no panic while held");
        if let Some(info) = running.get_mut(&self.space) {
            change(info);
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
        tracing::info!(space = %self.space, "{text}");
        self.sink.report(Progress::Note { text });
    }

    fn cancelled(&self) -> bool {
        self.jobs.stopping.load(Ordering::Relaxed)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.jobs.running.lock().expect("no panic while held").remove(&self.space);
    }
}

#[cfg(test)]
mod tests {
    use sluice_protocol::api::Unwatched;

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
}
