//! Any bytes into `sluice_fuzz::manifest_page`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::manifest_page(data));
