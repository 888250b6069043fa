//! What a daemon asks of the system's allocator.
//!
//! glibc gives nearly every thread a heap of its own, up to eight for each core, and what one thread frees another cannot use.
//! Work moves among many threads here: a replica of 200,000 small files held 118 MiB at its peak and took 451 MiB; with as
//! many heaps as cores it takes 197 MiB. mimalloc took 494 MiB and jemalloc 290 MiB (205 MiB with four heaps that give back after a second).
//!
//! Invariant: nothing but speed and memory depends on it. The variables of the environment that glibc reads still rule.

/// Fewest and most heaps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: (usize, usize) = (2, 8);

/// Lets the threads share a few heaps. To be called before there are any threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn share_heaps() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() || std::env::var_os("GLIBC_TUNABLES").is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(HEAPS.0, |n| n.get());
    let heaps = i32::try_from(cores.clamp(HEAPS.0, HEAPS.1)).unwrap_or(2);
    // SAFETY: `mallopt` takes two integers, locks what it changes, and answers 0 for what it does not take.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

/// Other allocators are left alone.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_heaps() {}
