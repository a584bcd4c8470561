#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (patchgpt_tests::untrusted::target("index").read)(bytes));
