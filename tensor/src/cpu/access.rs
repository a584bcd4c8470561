//! Checked access of kernels to the elements of tensors: locks, and strided views of one Rust type.
//!
//! A kernel computes in f32 or f64. What is stored in bf16 it reads and writes by [rows](super::rows) or, as products and attention do, by
//! [cells](super::cells); small tensors and strided views [`Access::converting`] gives it as f32 copies: an input is widened when its view is taken, and so
//! is an output that is added to; an output is rounded to nearest even when the access ends. Either way results are rounded once, at the end, whatever is
//! summed.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use half::bf16;

use super::copy::copy_views;
use super::memory::CpuMemory;
use super::parallel::Pool;
use crate::{DType, Destination, Element, Error, Layout, Result, Tensor};

enum Guard<'a> {
    Read { _guard: RwLockReadGuard<'a, ()> },
    Write { _guard: RwLockWriteGuard<'a, ()> },
}

/// The locks that one op holds on the buffers of its inputs and outputs.
///
/// Locks are taken once per buffer, in the order of their addresses, so that ops on several threads cannot wait for each other in a circle.
pub(crate) struct Access<'a> {
    guards: Vec<Guard<'a>>,
    /// Threads that convert; `None` where every view must have the type of its tensor.
    pool: Option<&'a Pool>,
    copies: RefCell<Vec<WideCopy>>,
}

/// An f32 copy of a bf16 view.
struct WideCopy {
    memory: CpuMemory,
    layout: Layout,
    /// The elements that the copy is rounded back to, if it is an output.
    back: Option<(*mut bf16, Layout)>,
}

/// What an op may do to a tensor.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Read,
    Write,
}

/// What a kernel does to an f32 copy.
#[derive(Clone, Copy, PartialEq)]
enum WideUse {
    Read,
    Written,
    Changed,
}

impl<'a> Access<'a> {
    /// Locks the buffers of `inputs` for reading and those of `outputs` for writing.
    ///
    /// # Errors
    /// A tensor that does not live on a CPU; an output that overlaps another output or an input, unless input and output have
    /// the very same layout and dtype (an element-wise op in place, which the frontends admit where the contract allows it).
    pub(crate) fn new(op: &'static str, inputs: &[&'a Tensor], outputs: &[&'a Tensor]) -> Result<Access<'a>> {
        for (i, out) in outputs.iter().enumerate() {
            let clash = |other: &Tensor, same_is_fine: bool| {
                std::ptr::eq(&**out.buffer(), &**other.buffer())
                    && !(same_is_fine && out.layout() == other.layout())
                    && ranges_meet(out.layout(), other.layout())
            };
            if inputs.iter().any(|x| clash(x, true)) || outputs[..i].iter().any(|o| clash(o, false)) {
                return Err(Error::Overlap { op });
            }
        }
        let mut wanted: Vec<(&'a CpuMemory, Use)> = Vec::with_capacity(inputs.len() + outputs.len());
        for (tensors, usage) in [(inputs, Use::Read), (outputs, Use::Write)] {
            for tensor in tensors {
                let memory = memory_of(op, tensor)?;
                match wanted.iter_mut().find(|(m, _)| std::ptr::eq(*m, memory)) {
                    Some((_, held)) if usage == Use::Write => *held = Use::Write,
                    Some(_) => {}
                    None => wanted.push((memory, usage)),
                }
            }
        }
        wanted.sort_by_key(|(m, _)| std::ptr::from_ref::<CpuMemory>(m) as usize);
        let guards = wanted
            .into_iter()
            .map(|(memory, usage)| match usage {
                Use::Read => Guard::Read { _guard: memory.lock.read().unwrap_or_else(|e| e.into_inner()) },
                Use::Write => Guard::Write { _guard: memory.lock.write().unwrap_or_else(|e| e.into_inner()) },
            })
            .collect();
        Ok(Access { guards, pool: None, copies: RefCell::default() })
    }

    /// As [`Access::new`], and views of f32 may be taken of bf16 tensors; `pool` converts them.
    pub(crate) fn converting(
        pool: &'a Pool,
        op: &'static str,
        inputs: &[&'a Tensor],
        outputs: &[&'a Tensor],
    ) -> Result<Access<'a>> {
        let mut access = Access::new(op, inputs, outputs)?;
        access.pool = Some(pool);
        Ok(access)
    }

    /// The elements of an input. The view must not outlive the access.
    pub(crate) fn view<'s, E: Element>(&'s self, tensor: &'s Tensor) -> Result<View<'s, E>> {
        debug_assert!(!self.guards.is_empty());
        if let Some((pointer, layout)) = self.wide_copy::<E>(tensor, WideUse::Read)? {
            return Ok(View { pointer, layout, elements: PhantomData });
        }
        Ok(View { pointer: typed::<E>(tensor)?, layout: *tensor.layout(), elements: PhantomData })
    }

    /// The elements of an output, all of which are written without being read.
    pub(crate) fn output<'s, E: Element>(&'s self, tensor: &'s Tensor) -> Result<ViewMut<'s, E>> {
        self.writable(tensor, WideUse::Written)
    }

    /// The elements of an output, all of which are written, or added to.
    pub(crate) fn destination<'s, E: Element>(&'s self, out: Destination<'s>) -> Result<ViewMut<'s, E>> {
        self.writable(out.tensor, if out.accumulate { WideUse::Changed } else { WideUse::Written })
    }

    /// The elements of an output that may be read, and of which some may stay what they are.
    pub(crate) fn view_mut<'s, E: Element>(&'s self, tensor: &'s Tensor) -> Result<ViewMut<'s, E>> {
        self.writable(tensor, WideUse::Changed)
    }

    fn writable<'s, E: Element>(&'s self, tensor: &'s Tensor, usage: WideUse) -> Result<ViewMut<'s, E>> {
        debug_assert!(self.guards.iter().any(|g| matches!(g, Guard::Write { .. })));
        if let Some((pointer, layout)) = self.wide_copy::<E>(tensor, usage)? {
            return Ok(ViewMut { pointer, layout, elements: PhantomData });
        }
        Ok(ViewMut { pointer: typed::<E>(tensor)?, layout: *tensor.layout(), elements: PhantomData })
    }

    /// The f32 copy of a bf16 tensor, with the order of the tensor's dimensions in memory; `None` where no copy is needed or allowed.
    fn wide_copy<E: Element>(&self, tensor: &Tensor, usage: WideUse) -> Result<Option<(*mut E, Layout)>> {
        let Some(pool) = self.pool.filter(|_| tensor.dtype() == DType::BF16 && E::DTYPE == DType::F32) else {
            return Ok(None);
        };
        let stored = typed::<bf16>(tensor)?;
        let layout = tensor.layout().packed()?;
        let memory = memory_of("access", tensor)?.sibling(layout.span().end * size_of::<f32>())?;
        let pointer = memory.pointer().cast::<f32>();
        // What is broadcast is copied once.
        let once = |mut layout: Layout| {
            for (d, &stride) in tensor.strides().iter().enumerate() {
                if stride == 0 && tensor.dim(d) > 1 {
                    layout = layout.narrow(d, 0, 1)?;
                }
            }
            Ok::<_, Error>(layout)
        };
        if usage != WideUse::Written {
            let wide = ViewMut { pointer, layout: once(layout)?, elements: PhantomData };
            copy_views(pool, wide, View { pointer: stored, layout: once(*tensor.layout())?, elements: PhantomData });
        }
        let back = (usage != WideUse::Read).then_some((stored, *tensor.layout()));
        self.copies.borrow_mut().push(WideCopy { memory, layout, back });
        Ok(Some((pointer.cast::<E>(), layout)))
    }
}

impl Drop for Access<'_> {
    fn drop(&mut self) {
        let Some(pool) = self.pool else { return };
        for WideCopy { memory, layout, back } in self.copies.take() {
            if let Some((pointer, stored)) = back {
                let wide = View { pointer: memory.pointer().cast::<f32>(), layout, elements: PhantomData };
                copy_views(pool, ViewMut { pointer, layout: stored, elements: PhantomData }, wide);
            }
        }
    }
}

/// Whether two layouts over one buffer can share an element: judged by their spans and, for column slices of one matrix, by their
/// columns. May say yes of exotic layouts that do not.
fn ranges_meet(a: &Layout, b: &Layout) -> bool {
    let (x, y) = (a.span(), b.span());
    if x.start >= y.end || y.start >= x.end {
        return false;
    }
    // [(rows, pitch), (width, 1)] on both sides, the same pitch: intervals of columns modulo the pitch.
    let (p, q) = (collapsed(a), collapsed(b));
    if let (&[(_, pitch), (w, 1)], &[(_, other), (v, 1)]) = (&p[..], &q[..])
        && pitch == other
    {
        let (i, j) = (a.offset() % pitch, b.offset() % pitch);
        return i + w > pitch || j + v > pitch || (i < j + v && j < i + w);
    }
    true
}

/// (size, stride) of the dimensions, those of size 1 left out and neighbours joined where one continues the other.
fn collapsed(layout: &Layout) -> Vec<(usize, usize)> {
    let mut dims: Vec<(usize, usize)> = Vec::with_capacity(layout.rank());
    for (&size, &stride) in layout.shape().iter().zip(layout.strides()).filter(|(size, _)| **size != 1) {
        match dims.last_mut() {
            Some((joined, inner)) if *inner == stride * size => (*joined, *inner) = (*joined * size, stride),
            _ => dims.push((size, stride)),
        }
    }
    dims
}

fn memory_of<'a>(op: &'static str, tensor: &'a Tensor) -> Result<&'a CpuMemory> {
    tensor.buffer().memory::<CpuMemory>().ok_or_else(|| Error::Device {
        op,
        first: "cpu".into(),
        second: tensor.device().to_string(),
    })
}

fn typed<E: Element>(tensor: &Tensor) -> Result<*mut E> {
    if tensor.dtype() != E::DTYPE {
        return Err(Error::dtype("access", E::DTYPE, tensor.dtype()));
    }
    Ok(memory_of("access", tensor)?.pointer().cast::<E>())
}

/// A readable strided view.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, E> {
    pointer: *mut E,
    layout: Layout,
    elements: PhantomData<&'a E>,
}

/// A writable strided view, shared by the tasks of a kernel, each of which writes elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct ViewMut<'a, E> {
    pointer: *mut E,
    layout: Layout,
    elements: PhantomData<&'a E>,
}

// SAFETY: a View only reads, under the read lock that its Access holds.
unsafe impl<E: Element> Send for View<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for View<'_, E> {}
// SAFETY: writes go through unsafe methods whose callers promise disjoint elements.
unsafe impl<E: Element> Send for ViewMut<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for ViewMut<'_, E> {}

impl<'a, E: Element> View<'a, E> {
    /// The same elements with another layout of the same span.
    pub(super) fn with_layout(self, layout: Layout) -> Self {
        View { layout, ..self }
    }

    /// Shape, strides and offset.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of the element at `offset` elements from the start of the buffer.
    pub(crate) fn at(&self, offset: usize) -> *const E {
        // SAFETY: callers pass offsets within the view's span, which lies inside the allocation.
        unsafe { self.pointer.add(offset) }
    }

    /// Number of rows: the product of all dimensions but the last.
    pub(crate) fn rows(&self) -> usize {
        leading(&self.layout)
    }

    /// Elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.layout.shape().last().copied().unwrap_or(1)
    }

    /// Row number `i` in row-major order; the last dimension must be contiguous in memory.
    pub(crate) fn row(&self, i: usize) -> &'a [E] {
        let (offset, width) = row_of(&self.layout, i);
        // SAFETY: the row lies within the view's span; the memory is initialised and locked for reading.
        unsafe { std::slice::from_raw_parts(self.pointer.add(offset), width) }
    }

    /// All elements of a contiguous view.
    pub(crate) fn slice(&self) -> &'a [E] {
        assert!(self.layout.is_contiguous(), "slice of a strided view");
        // SAFETY: contiguous, inside the allocation, initialised and locked for reading.
        unsafe { std::slice::from_raw_parts(self.pointer.add(self.layout.offset()), self.layout.len()) }
    }
}

impl<'a, E: Element> ViewMut<'a, E> {
    /// The same elements with another layout of the same span.
    pub(super) fn with_layout(self, layout: Layout) -> Self {
        ViewMut { layout, ..self }
    }

    /// Shape, strides and offset.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of the element at `offset` elements from the start of the buffer.
    pub(crate) fn at(&self, offset: usize) -> *mut E {
        // SAFETY: callers pass offsets within the view's span, which lies inside the allocation.
        unsafe { self.pointer.add(offset) }
    }

    /// Row number `i` in row-major order; the last dimension must be contiguous in memory.
    ///
    /// # Safety
    /// No other reference to the row's elements may be alive: tasks write rows of their own, and where an op works in place (its
    /// input is the same view, see [`ViewMut::is_same`]) it reads the row through this slice and not through the input's.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, i: usize) -> &'a mut [E] {
        let (offset, width) = row_of(&self.layout, i);
        // SAFETY: inside the allocation, initialised, locked for writing; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(offset), width) }
    }

    /// Whether `input` is the very same view of the very same memory: the op works in place.
    pub(crate) fn is_same(&self, input: &View<'_, E>) -> bool {
        self.pointer == input.pointer && self.layout == input.layout
    }

    /// Elements `range` of a contiguous view.
    ///
    /// # Safety
    /// As [`ViewMut::row`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: std::ops::Range<usize>) -> &'a mut [E] {
        assert!(
            self.layout.is_contiguous() && range.start <= range.end && range.end <= self.layout.len(),
            "slice {range:?} of {:?}",
            self.layout
        );
        // SAFETY: contiguous, inside the allocation, initialised, locked for writing; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(self.layout.offset() + range.start), range.len()) }
    }
}

fn leading(layout: &Layout) -> usize {
    let shape = layout.shape();
    shape[..shape.len().saturating_sub(1)].iter().product()
}

fn row_of(layout: &Layout, mut i: usize) -> (usize, usize) {
    let rank = layout.rank();
    if rank == 0 {
        return (layout.offset(), 1);
    }
    let mut offset = layout.offset();
    for d in (0..rank - 1).rev() {
        offset += (i % layout.shape()[d]) * layout.strides()[d];
        i /= layout.shape()[d];
    }
    assert!(i == 0 && layout.has_contiguous_rows(), "row of {layout:?}");
    (offset, layout.shape()[rank - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_slices_of_one_matrix_do_not_meet() -> Result<()> {
        // [B, T, (H + 2G) D] as q, k and v.
        let joined = Layout::contiguous(&[2, 3, 8, 4])?;
        let (q, k, v) = (joined.narrow(2, 0, 4)?, joined.narrow(2, 4, 2)?, joined.narrow(2, 6, 2)?);
        assert!(!ranges_meet(&q, &k) && !ranges_meet(&k, &v) && !ranges_meet(&q, &v));
        assert!(ranges_meet(&q, &joined) && ranges_meet(&k, &joined.narrow(2, 5, 2)?));
        assert!(ranges_meet(&joined.narrow(2, 3, 2)?, &q));
        assert!(!ranges_meet(&joined.narrow(0, 0, 1)?, &joined.narrow(0, 1, 1)?));
        Ok(())
    }

    #[test]
    fn views_that_share_an_element_meet_and_columns_that_do_not_stay_apart() -> Result<()> {
        let buffer = Layout::contiguous(&[60])?;
        let starts: &[usize] = if cfg!(miri) { &[24] } else { &[0, 1, 5, 24, 36] };
        let mut views = Vec::new();
        for &start in starts {
            for shape in [&[24][..], &[4, 6], &[2, 3, 4], &[3, 1, 8]] {
                let whole = buffer.narrow(0, start, 24)?.reshape(shape)?.expect("a view");
                let order: Vec<usize> = (0..shape.len()).rev().collect();
                views.extend([(start, whole), (start, whole.permute(&order)?)]);
                for (dim, &size) in shape.iter().enumerate() {
                    for (first, length) in [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (4, 2)] {
                        if first + length <= size {
                            views.push((start, whole.narrow(dim, first, length)?));
                        }
                    }
                }
            }
        }
        let elements = |view: &Layout| (0..view.len()).map(|i| view.offset_of(i)).collect::<Vec<usize>>();
        let places: Vec<Vec<usize>> = views.iter().map(|(_, view)| elements(view)).collect();
        for ((start, a), x) in views.iter().zip(&places) {
            for ((other, b), y) in views.iter().zip(&places) {
                let (share, meet) = (x.iter().any(|place| y.contains(place)), ranges_meet(a, b));
                assert!(meet || !share, "{a:?} and {b:?} share an element");
                // Columns are counted from a multiple of the pitch.
                let columns = |view: &Layout| view.strides() == [6, 1] && view.shape()[0] == 4 && view.shape()[1] > 1;
                assert!(
                    meet == share || start != other || start % 6 != 0 || !columns(a) || !columns(b),
                    "{a:?} and {b:?} share none"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn an_output_overlaps_nothing_but_an_input_of_the_same_layout() -> Result<()> {
        let device = crate::Device::cpu_with_threads(1)?;
        let x = Tensor::zeros(&[4, 4], DType::F32, &device)?;
        let (upper, lower, turned) = (x.narrow(0, 0, 2)?, x.narrow(0, 2, 2)?, x.t()?);
        let refused = |inputs: &[&Tensor], outputs: &[&Tensor]| {
            matches!(Access::new("test", inputs, outputs).err(), Some(Error::Overlap { op: "test" }))
        };
        assert!(refused(&[&turned], &[&x]) && refused(&[&upper], &[&x]) && refused(&[], &[&x, &upper]));
        assert!(refused(&[], &[&x, &x]), "two outputs in one place");
        assert!(!refused(&[&x], &[&x]) && !refused(&[&upper], &[&lower]) && !refused(&[], &[&upper, &lower]));
        assert!(!refused(&[&x, &turned], &[]), "inputs may overlap");
        Ok(())
    }
}
