//! The walk: ops in descending order of creation, each once, when the gradients of all its outputs are complete.
//!
//! Gradients gather in place in memory that nobody else can see: a buffer is written only if its reference count says that
//! this walk is its single owner, or if the caller gave it as a parameter's gradient. Everything else is shared without a copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use patchgpt_tensor::{DType, Tensor};

use crate::graph::{Edge, Kind, Leaf, Node, Work};
use crate::recording::{Recording, with_state};
use crate::{Error, Gradients, Result};

/// An op that waits for its turn, with what has gathered for its outputs.
struct Pending {
    node: Arc<Node>,
    d_outputs: Vec<Option<Tensor>>,
}

pub(crate) struct Walk {
    pending: BTreeMap<u64, Pending>,
    /// Parameters whose gradient may share memory with something else.
    adopted: Vec<Arc<Node>>,
    keep_graph: bool,
}

/// Whether the memory of `tensor` belongs to the caller alone.
pub(crate) fn is_exclusive(tensor: &Tensor) -> bool {
    Arc::strong_count(tensor.buffer()) == 1
}

/// Whether results can be added to `tensor` in place.
pub(crate) fn is_writable(tensor: &Tensor) -> bool {
    is_exclusive(tensor) && tensor.is_contiguous()
}

/// Whether `tensor` can stay in a parameter: memory of its own, of its own size.
fn is_settled(tensor: &Tensor) -> bool {
    is_writable(tensor) && tensor.buffer().len() == tensor.len()
}

/// `a + b` in the memory of either if possible.
fn combine(a: Tensor, b: Tensor) -> Result<Tensor> {
    if is_writable(&a) {
        a.add_(&b)?;
        Ok(a)
    } else if is_writable(&b) {
        b.add_(&a)?;
        Ok(b)
    } else {
        Ok(a.add(&b)?)
    }
}

/// Sends `d_out` from `root` to all parameters.
pub(crate) fn run(root: &Edge, d_out: Tensor, keep_graph: bool) -> Result<()> {
    let mut walk = Walk { pending: BTreeMap::new(), adopted: Vec::new(), keep_graph };
    let walked = walk.contribute(root, d_out).and_then(|()| walk.descend());
    let settled = walk.settle();
    walked.and(settled)
}

impl Walk {
    fn descend(&mut self) -> Result<()> {
        while let Some((_, Pending { node, d_outputs })) = self.pending.pop_last() {
            let Kind::Op(op) = &node.kind else { continue };
            let body = op.body(self.keep_graph).ok_or(Error::Released { op: op.name })?;
            match &body.work {
                Work::Function { function, saved } => {
                    saved.prepare()?;
                    let mut d_inputs = Gradients::new(op.name, &body.inputs, self);
                    function.backward(saved, &d_outputs, &mut d_inputs)?;
                    d_inputs.finish()?;
                }
                Work::Recomputation(recomputation) => {
                    let output = with_state(Recording::On, || recomputation.run(&body.inputs))?;
                    if let (Some(edge), Some(d_out)) = (output.edge(), d_outputs.into_iter().next().flatten()) {
                        self.contribute(edge, d_out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What has gathered for an output of an op so far.
    fn slot(&mut self, edge: &Edge, outputs: usize) -> &mut Option<Tensor> {
        let pending = self
            .pending
            .entry(edge.node.id())
            .or_insert_with(|| Pending { node: edge.node.clone(), d_outputs: vec![None; outputs] });
        &mut pending.d_outputs[edge.output]
    }

    /// Adds `gradient`, which fits, to what has gathered at `edge`.
    pub(crate) fn contribute(&mut self, edge: &Edge, gradient: Tensor) -> Result<()> {
        match &edge.node.kind {
            Kind::Leaf(leaf) => {
                if add_to_leaf(leaf, gradient)? {
                    self.adopted.push(edge.node.clone());
                }
            }
            Kind::Op(op) => {
                let slot = self.slot(edge, op.outputs);
                *slot = Some(match slot.take() {
                    Some(sum) => combine(sum, gradient)?,
                    None => gradient,
                });
            }
            Kind::Rehearsed => {
                return Err(Error::value(
                    "backward",
                    "a value from inside a recomputed function cannot be differentiated from outside; return it from the function",
                ));
            }
        }
        Ok(())
    }

    /// Memory at `edge` to which a result of `dtype` (or, with `wide`, of its accumulator) can be added in place, taken out of its slot
    /// unless it is a given gradient (the flag).
    pub(crate) fn take(&mut self, edge: &Edge, dtype: DType, wide: bool) -> Option<(Tensor, bool)> {
        let mut leaf_slot;
        let (slot, given) = match &edge.node.kind {
            Kind::Leaf(leaf) => {
                leaf_slot = leaf.gradient();
                (&mut *leaf_slot, leaf.given)
            }
            Kind::Op(op) => (self.slot(edge, op.outputs), false),
            Kind::Rehearsed => return None,
        };
        let gradient = slot.as_ref()?;
        if given {
            let fits = gradient.dtype() == dtype || (wide && gradient.dtype() == dtype.accumulator());
            return (gradient.is_contiguous() && fits).then(|| (gradient.clone(), true));
        }
        if is_writable(gradient) { slot.take().map(|t| (t, false)) } else { None }
    }

    /// Gives parameters that adopted shared memory, or a view, a gradient of their own.
    fn settle(&mut self) -> Result<()> {
        for node in self.adopted.drain(..) {
            if let Kind::Leaf(leaf) = &node.kind {
                let mut slot = leaf.gradient();
                if let Some(gradient) = slot.as_ref().filter(|g| !is_settled(g)) {
                    let own = gradient.copy()?;
                    *slot = Some(own);
                }
            }
        }
        Ok(())
    }
}

/// Adds to a parameter's gradient; true if it may now share memory with something else.
fn add_to_leaf(leaf: &Leaf, gradient: Tensor) -> Result<bool> {
    let mut slot = leaf.gradient();
    if let (true, Some(sum)) = (leaf.given, slot.as_ref()) {
        sum.add_(&gradient.cast(sum.dtype())?)?;
        return Ok(false);
    }
    let sum = match slot.take() {
        Some(sum) => combine(sum, gradient)?,
        None => gradient,
    };
    let shared = !is_settled(&sum);
    *slot = Some(sum);
    Ok(shared)
}
