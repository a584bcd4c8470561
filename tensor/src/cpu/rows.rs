//! Rows of a tensor as a kernel computes with them, whatever they are stored in: a row of bf16 is widened into a buffer of the task that reads it,
//! and rounded from one in which it was made, so that of a tensor no more than a row exists twice, in a cache. Where the processor has AVX512_BF16, results
//! that are subnormal numbers become zeros.

use std::ops::Range;
use std::slice::SliceIndex;

use half::bf16;

use super::access::{Access, View, ViewMut};
use super::copy;
use super::isa::{Isa, Kernel, dispatch_bf16};
use super::math::Float;
use super::stored::Stored;
use super::stream;
use crate::{DType, Destination, Element, Result, Tensor};

/// A type that rows are computed in.
pub(super) trait Value: Float + copy::Convert {}

impl<F: Float + copy::Convert> Value for F {}

/// The rows of an input: all of its dimensions but the last, which is contiguous, in row-major order.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a, F> {
    /// Stored in the type that is computed in.
    Wide(View<'a, F>),
    Bf16(View<'a, bf16>),
}

impl<'a, F: Value> Rows<'a, F> {
    pub(super) fn of(access: &'a Access, tensor: &'a Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::BF16 => Ok(Rows::Bf16(access.view(tensor)?)),
            _ => Ok(Rows::Wide(access.view(tensor)?)),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Rows::Wide(view) => view.rows(),
            Rows::Bf16(view) => view.rows(),
        }
    }

    /// Elements of a row.
    pub(super) fn width(&self) -> usize {
        match self {
            Rows::Wide(view) => view.width(),
            Rows::Bf16(view) => view.width(),
        }
    }

    /// Element `column` of row `row`.
    pub(super) fn value(&self, row: usize, column: usize) -> F {
        match self {
            Rows::Wide(view) => view.row(row)[column],
            Rows::Bf16(view) => view.row(row)[column].wide(),
        }
    }

    /// For one task.
    pub(super) fn reader(&self) -> Reader<'a, F> {
        Reader { rows: *self, copies: false, buffer: Vec::new() }
    }

    /// For one task, which reads a part of a row before it writes that part of the same row of `out`, which may be this very tensor. Then what is
    /// read is copied, and what is written stays in a cache, where it was found.
    pub(super) fn in_place(&self, out: &RowsMut<'a, F>) -> (Reader<'a, F>, Writer<'a, F>) {
        let copies = out.is_same(self);
        (Reader { copies, ..self.reader() }, if copies { out.read_again() } else { *out }.writer())
    }
}

/// How a task reads rows.
pub(super) struct Reader<'a, F> {
    rows: Rows<'a, F>,
    /// Whether rows that could be read where they are are copied, because they are written next.
    copies: bool,
    buffer: Vec<F>,
}

impl<F: Value> Reader<'_, F> {
    pub(super) fn row(&mut self, row: usize) -> &[F] {
        self.part(row, 0..self.rows.width())
    }

    /// Elements `range` of row `row`.
    pub(super) fn part(&mut self, row: usize, range: Range<usize>) -> &[F] {
        match &self.rows {
            Rows::Wide(view) if !self.copies => &view.row(row)[range],
            Rows::Wide(view) => copied(&view.row(row)[range], &mut self.buffer),
            Rows::Bf16(view) => copied(&view.row(row)[range], &mut self.buffer),
        }
    }
}

/// Values, converted into a buffer.
fn copied<'a, A: copy::Convert, F: Value>(from: &[A], buffer: &'a mut Vec<F>) -> &'a [F] {
    buffer.resize(from.len(), F::ZERO);
    copy::row(from, buffer);
    buffer
}

/// The rows of an output, as [`Rows`].
#[derive(Clone, Copy)]
pub(super) struct RowsMut<'a, F> {
    place: Place<'a, F>,
    /// Elements of the tensor.
    len: usize,
    accumulate: bool,
}

/// An output in the type in which it is stored.
#[derive(Clone, Copy)]
pub(super) enum Place<'a, F> {
    /// The type that is computed in.
    Wide(ViewMut<'a, F>),
    Bf16(ViewMut<'a, bf16>),
}

impl<'a, F: Element> Place<'a, F> {
    pub(super) fn of(access: &'a Access, tensor: &'a Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::BF16 => Ok(Place::Bf16(access.view_mut(tensor)?)),
            _ => Ok(Place::Wide(access.view_mut(tensor)?)),
        }
    }
}

impl<'a, F: Value> RowsMut<'a, F> {
    pub(super) fn of(access: &'a Access, Destination { tensor, accumulate }: Destination<'a>) -> Result<Self> {
        Ok(RowsMut { place: Place::of(access, tensor)?, len: tensor.len(), accumulate })
    }

    /// Whether an input is this very tensor.
    fn is_same(&self, input: &Rows<F>) -> bool {
        match (&self.place, input) {
            (Place::Wide(to), Rows::Wide(from)) => to.is_same(from),
            (Place::Bf16(to), Rows::Bf16(from)) => to.is_same(from),
            _ => false,
        }
    }

    /// The same rows, kept in a cache however large the tensor is, since the task that writes a row reads it then.
    pub(super) fn read_again(self) -> Self {
        RowsMut { len: 0, ..self }
    }

    /// For one task, which writes rows of its own.
    pub(super) fn writer(&self) -> Writer<'a, F> {
        let stream = match self.place {
            Place::Wide(_) => Stream::Wide(stream::Writer::new(self.len, self.accumulate)),
            Place::Bf16(_) => Stream::Bf16(stream::Writer::new(self.len, self.accumulate)),
        };
        Writer { rows: *self, stream, wide: Vec::new() }
    }
}

/// How a task writes rows. What it wrote is visible to others when it is dropped.
pub(super) struct Writer<'a, F> {
    rows: RowsMut<'a, F>,
    stream: Stream<F>,
    wide: Vec<F>,
}

enum Stream<F> {
    Wide(stream::Writer<F>),
    Bf16(stream::Writer<bf16>),
}

impl<F: Value> Writer<'_, F> {
    /// Lets `make` write row `row`, all of it; it finds there what the output holds only if it adds to it.
    ///
    /// # Safety
    /// As [`ViewMut::row`].
    pub(super) unsafe fn write<T>(&mut self, row: usize, make: impl FnOnce(&mut [F]) -> T) -> T {
        // SAFETY: the caller's promise.
        unsafe { self.write_part(row, .., make) }
    }

    /// The same for elements `range` of row `row`.
    ///
    /// # Safety
    /// As [`ViewMut::row`].
    pub(super) unsafe fn write_part<T>(
        &mut self,
        row: usize,
        range: impl SliceIndex<[F], Output = [F]> + SliceIndex<[bf16], Output = [bf16]>,
        make: impl FnOnce(&mut [F]) -> T,
    ) -> T {
        match (&self.rows.place, &mut self.stream) {
            // SAFETY: the caller's promise.
            (Place::Wide(view), Stream::Wide(stream)) => stream.write(unsafe { &mut view.row(row)[range] }, make),
            (Place::Bf16(view), Stream::Bf16(stream)) => {
                // SAFETY: the caller's promise.
                let to = unsafe { &mut view.row(row)[range] };
                self.wide.resize(to.len(), F::ZERO);
                if self.rows.accumulate {
                    copy::row(to, &mut self.wide);
                }
                let result = make(&mut self.wide);
                stream.write(to, |to| round(&self.wide, to));
                result
            }
            _ => unreachable!("a writer is made for the type in which its rows are stored"),
        }
    }
}

/// Stores f32 values, those of a row that is stored in bf16.
fn round<F: Float>(x: &[F], out: &mut [bf16]) {
    dispatch_bf16(Round { x: bytemuck::cast_slice(x), out: bytemuck::cast_slice_mut(out) });
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [u16],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        I::round_bf16(self.x, self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// Columns of a wider matrix, whole numbers that bf16 holds.
    fn columns(dtype: DType, device: &Device) -> Tensor {
        let values: Vec<f32> = (0..3 * 80).map(|i| (i % 97) as f32 - 40.0).collect();
        let matrix = Tensor::from_slice(&values, &[3, 80], device).and_then(|x| x.cast(dtype));
        matrix.and_then(|x| x.narrow(1, 5, 70)).expect("a view")
    }

    #[test]
    fn rows_are_read_and_written_whatever_they_are_stored_in() -> Result<()> {
        let device = Device::cpu_with_threads(1)?;
        for dtype in [DType::F32, DType::BF16] {
            let (x, y) = (columns(dtype, &device), Tensor::full(&[3, 70], 1.0, dtype, &device)?);
            let before = x.to_f64_vec()?;
            for accumulate in [false, true] {
                let access = Access::new("test", &[&x], &[&y])?;
                let from = Rows::<f32>::of(&access, &x)?;
                assert_eq!((from.count(), from.width(), from.value(2, 69)), (3, 70, before[209] as f32));
                let to = RowsMut::of(&access, Destination { tensor: &y, accumulate })?;
                let (mut reader, mut writer) = (from.reader(), to.writer());
                for row in 0..3 {
                    let x = reader.row(row);
                    let double = |(y, x): (&mut f32, &f32)| *y = if accumulate { *y + 2.0 * x } else { 2.0 * x };
                    // SAFETY: one task.
                    unsafe { writer.write(row, |y| y.iter_mut().zip(x).for_each(double)) };
                }
            }
            assert!(y.to_f64_vec()?.iter().zip(&before).all(|(y, x)| *y == 4.0 * x), "{dtype}");
        }
        Ok(())
    }

    #[test]
    fn parts_of_rows_are_changed_in_place() -> Result<()> {
        let device = Device::cpu_with_threads(1)?;
        for dtype in [DType::F32, DType::BF16] {
            let x = columns(dtype, &device);
            let before = x.to_f64_vec()?;
            {
                let access = Access::new("test", &[&x], &[&x])?;
                let (from, to) = (Rows::<f32>::of(&access, &x)?, RowsMut::of(&access, Destination::write(&x))?);
                let (mut reader, mut writer) = from.in_place(&to);
                for (row, range) in [(0, 0..70), (1, 3..40), (2, 69..70)] {
                    let x = reader.part(row, range.clone());
                    // SAFETY: one task, which reads before it writes.
                    unsafe { writer.write_part(row, range, |y| y.iter_mut().zip(x).for_each(|(y, x)| *y = -x)) };
                }
            }
            let changed = |i: usize| i < 70 || (73..110).contains(&i) || i == 209;
            for (i, (y, x)) in x.to_f64_vec()?.into_iter().zip(&before).enumerate() {
                assert_eq!(y, if changed(i) { -x } else { *x }, "{dtype} {i}");
            }
        }
        Ok(())
    }
}
