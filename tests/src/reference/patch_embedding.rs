//! `out[n] = (1/K) sum_k table[ids[n, k]]`; `d_table[v]` collects `d_out[n] / K` for every occurrence of v.

use crate::array::Array;

/// Means of K rows of the table [V, C]; ids [.., K] flat, `lead` the leading dimensions.
pub fn forward(table: &Array, ids: &[i32], lead: &[usize], patch: usize) -> Array {
    let c = table.width();
    let mut shape = lead.to_vec();
    shape.push(c);
    let mut out = Array::zeros(&shape);
    for (position, &id) in ids.iter().enumerate() {
        for i in 0..c {
            out.row_mut(position / patch)[i] += table.row(id as usize)[i] / patch as f64;
        }
    }
    out
}

/// Gradient for the table.
pub fn backward(table: &Array, ids: &[i32], patch: usize, d_out: &Array) -> Vec<Array> {
    let mut d_table = Array::zeros(&table.shape);
    for (position, &id) in ids.iter().enumerate() {
        for i in 0..table.width() {
            d_table.row_mut(id as usize)[i] += d_out.row(position / patch)[i] / patch as f64;
        }
    }
    vec![d_table]
}
