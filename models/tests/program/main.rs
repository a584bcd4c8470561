//! The program from outside: the binary is run on small models over a small text, as a user would.

mod bad_input;
mod bench;
mod compare;
mod devices;
mod gemm_search;
mod inspect;
mod interruption;
mod model;
mod plan;
mod run;
mod stops;
mod train;
