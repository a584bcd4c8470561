//! The gradient of every case of every table against central differences in f64, and the checker against deliberately wrong backwards.

mod cases;
mod mistakes;
mod spoiled;
