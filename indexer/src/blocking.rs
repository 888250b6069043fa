//! The one bridge from blocking callers to the asynchronous format libraries.
//!
//! Invariant: a future runs on a runtime of this crate, on threads with a deep stack, never on the
//! caller's thread or runtime. So a reader may be called from any blocking thread, and a panic in a
//! format library comes back as an error instead of taking the daemon down.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::mpsc;

use tokio::runtime::Runtime;

/// Worker threads; the work is mostly waiting for reads, which run on blocking threads.
const WORKERS: usize = 2;
/// Stack of every thread, in bytes. Query planning and dataset opening nest deeply, and far
/// more so without optimisation.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// The runtime is never dropped: dropping one inside another runtime panics.
static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();

fn runtime() -> Result<&'static Runtime, String> {
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .thread_name("sluice-tables")
                .thread_stack_size(STACK_BYTES)
                .enable_all()
                .build()
                .map_err(|e| format!("no runtime for table readers: {e}"))
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// Runs `future` to its end and blocks the calling thread until then.
///
/// # Errors
/// When the runtime cannot start, or the future panicked.
pub fn run<F>(future: F) -> Result<F::Output, String>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let runtime = runtime()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let task = runtime.spawn(future);
    runtime.spawn(async move {
        // The receiver only goes away with its thread, and then nobody waits for the answer.
        let _ = sender.send(task.await);
    });
    match receiver.recv() {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(e)) if e.is_panic() => {
            let words = words(e);
            tracing::error!(%words, "a format library panicked");
            Err(format!("the format library panicked: {words}"))
        }
        Ok(Err(e)) => Err(format!("the format library was stopped: {e}")),
        Err(_) => Err("the runtime for table readers is gone".to_string()),
    }
}

fn words(error: tokio::task::JoinError) -> String {
    let payload = error.into_panic();
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).to_string();
    }
    match payload.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => "without a message".to_string(),
    }
}

/// What a library says, without the backtrace that some append when the environment asks for one.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::run;

    #[test]
    fn gives_the_output_even_inside_another_runtime() {
        let outer = tokio::runtime::Runtime::new().expect("a runtime");
        let got = outer
            .block_on(async { tokio::task::spawn_blocking(|| run(async { 7 })).await.expect("a blocking thread") });
        assert_eq!(got, Ok(7));
    }

    #[test]
    fn turns_a_panic_into_an_error() {
        let got: Result<(), String> = run(async { panic!("bad page") });
        assert!(got.expect_err("an error").contains("bad page"));
    }
}
