//! Any bytes into `sluice_fuzz::catalog_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::catalog_record(data));
