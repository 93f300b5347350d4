#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| audit_consumer_fuzz::spool_line::check(bytes));
