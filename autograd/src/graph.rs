//! The graph: nodes numbered in the order of their creation, each holding its inputs' places.
//!
//! A node's inputs exist before it, so descending numbers are a topological order. Nodes hold no output tensors, so that a
//! function may save its outputs without a cycle. Dropping is iterative: a chain of any depth fits the stack.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchgpt_tensor::{DType, Device, Layout, Tensor};

use crate::function::{Function, Saved};
use crate::recompute::Recomputation;

/// One step of the computation, or a parameter.
pub(crate) struct Node {
    id: u64,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Leaf(Leaf),
    Op(Op),
    /// An intermediate value of a rehearsal (see [`crate::recompute`]): would be tracked, but nothing is recorded.
    Rehearsed,
}

/// A parameter: where gradients end.
pub(crate) struct Leaf {
    gradient: Mutex<Option<Tensor>>,
    /// The gradient's memory came from the caller: it is always added to in place.
    pub(crate) given: bool,
}

/// A recorded op. Its body is gone once a backward without `keep_graph` has passed.
pub(crate) struct Op {
    pub(crate) name: &'static str,
    pub(crate) outputs: usize,
    body: Mutex<Option<Arc<Body>>>,
}

/// What the backward of an op needs.
pub(crate) struct Body {
    pub(crate) work: Work,
    pub(crate) inputs: Vec<Input>,
}

pub(crate) enum Work {
    Function { function: Arc<dyn Function>, saved: Saved },
    Recomputation(Recomputation),
}

/// An input of an op: its place in the graph, if tracked, and what its gradient must look like.
pub(crate) struct Input {
    pub(crate) edge: Option<Edge>,
    pub(crate) layout: Layout,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

/// An output of a node.
#[derive(Clone)]
pub(crate) struct Edge {
    pub(crate) node: Arc<Node>,
    pub(crate) output: usize,
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Node {
    fn new(kind: Kind) -> Arc<Node> {
        Arc::new(Node { id: next_id(), kind })
    }

    pub(crate) fn leaf(gradient: Option<Tensor>) -> Arc<Node> {
        let given = gradient.is_some();
        Node::new(Kind::Leaf(Leaf { gradient: Mutex::new(gradient), given }))
    }

    pub(crate) fn op(name: &'static str, outputs: usize, work: Work, inputs: Vec<Input>) -> Arc<Node> {
        let body = Mutex::new(Some(Arc::new(Body { work, inputs })));
        Node::new(Kind::Op(Op { name, outputs, body }))
    }

    pub(crate) fn rehearsed() -> Arc<Node> {
        Node::new(Kind::Rehearsed)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Leaf {
    pub(crate) fn gradient(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Op {
    /// The body, which leaves the node unless `keep`; `None` if it has left before.
    pub(crate) fn body(&self, keep: bool) -> Option<Arc<Body>> {
        let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        if keep { body.clone() } else { body.take() }
    }
}

impl Input {
    pub(crate) fn new(tensor: &Tensor, edge: Option<Edge>) -> Input {
        Input { edge, layout: *tensor.layout(), dtype: tensor.dtype(), device: tensor.device().clone() }
    }
}

thread_local! {
    /// Bodies that wait to be dropped; `None` when no drop is under way on this thread.
    static WAITING: RefCell<Option<Vec<Arc<Body>>>> = const { RefCell::new(None) };
}

impl Drop for Op {
    /// Dropping a body drops its inputs' nodes and with them their bodies: these wait in a list instead of recursing.
    fn drop(&mut self) {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = body else { return };
        let mut current = Some(body);
        let outermost = WAITING.try_with(|waiting| match &mut *waiting.borrow_mut() {
            Some(list) => {
                list.extend(current.take());
                false
            }
            none => {
                *none = Some(Vec::new());
                true
            }
        });
        // On an exiting thread, or as an inner drop, there is nothing left to do here.
        if !outermost.unwrap_or(false) {
            return;
        }
        while let Some(body) = current.take() {
            drop(body);
            current = WAITING.with_borrow_mut(|waiting| waiting.as_mut().and_then(Vec::pop));
        }
        WAITING.set(None);
    }
}
