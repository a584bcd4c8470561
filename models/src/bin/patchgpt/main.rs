//! The program `patchgpt`.
fn main() {}
