//! Any bytes into `sluice_fuzz::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::path(data));
