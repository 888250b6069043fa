//! Any bytes into `sluice_fuzz::head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::head(data));
