//! [`Tensor`]: a strided view of a typed, reference-counted buffer on a device.

use std::fmt;
use std::sync::Arc;

use crate::backend::Distribution;
use crate::index::IndexRange;
use crate::{Buffer, DType, Device, Element, Error, Layout, Result};

/// An n-dimensional array: a [`Layout`] over a shared [`Buffer`].
///
/// Cloning and viewing copy no elements. Writes in place are seen through every view of the buffer and bump its version.
///
/// ```
/// use patchgpt_tensor::{Device, Tensor};
/// # fn main() -> patchgpt_tensor::Result<()> {
/// let device = Device::cpu()?;
/// let a = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], &device)?;
/// let b = a.transpose(0, 1)?; // a view
/// assert_eq!(a.matmul(&b)?.to_vec::<f32>()?, [14.0, 32.0, 32.0, 77.0]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    layout: Layout,
}

impl Tensor {
    /// A tensor whose elements are unspecified until it is written.
    pub fn empty(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let layout = Layout::contiguous(shape)?;
        Ok(Tensor { buffer: Buffer::allocate(device, dtype, layout.len())?, layout })
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::full(shape, 0.0, dtype, device)
    }

    /// A tensor with every element `value`, rounded to `dtype`.
    pub fn full(shape: &[usize], value: f64, dtype: DType, device: &Device) -> Result<Tensor> {
        let out = Tensor::empty(shape, dtype, device)?;
        out.fill_(value)?;
        Ok(out)
    }

    /// A 0-d tensor.
    pub fn scalar(value: f64, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::full(&[], value, dtype, device)
    }

    /// A tensor of `shape` with the elements of `data` in row-major order.
    pub fn from_slice<E: Element>(data: &[E], shape: &[usize], device: &Device) -> Result<Tensor> {
        let out = Tensor::empty(shape, E::DTYPE, device)?;
        if out.len() != data.len() {
            return Err(Error::shape(
                "from_slice",
                format!("{shape:?} takes {} elements, got {}", out.len(), data.len()),
            ));
        }
        out.write_from(data)?;
        Ok(out)
    }

    /// Random numbers by the counter-based generator Philox4x32-10 (Salmon et al., 2011): element i of the tensor depends
    /// on `seed` and `offset + i` only, whatever the device or the number of threads.
    pub fn random(
        shape: &[usize],
        distribution: Distribution,
        seed: u64,
        offset: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let out = Tensor::empty(shape, dtype, device)?;
        out.random_(distribution, seed, offset)?;
        Ok(out)
    }

    /// A tensor over the same buffer with another layout, which must lie inside it.
    pub(crate) fn with_layout(&self, layout: Layout) -> Tensor {
        debug_assert!(layout.span().end <= self.buffer.len());
        Tensor { buffer: self.buffer.clone(), layout }
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Size of dimension `d`; 1 beyond the rank.
    pub fn dim(&self, d: usize) -> usize {
        self.shape().get(d).copied().unwrap_or(1)
    }

    /// Distance in elements between neighbours along each dimension.
    pub fn strides(&self) -> &[usize] {
        self.layout.strides()
    }

    /// Shape, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.layout.rank()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// Where the tensor lives.
    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    /// The buffer that the tensor views.
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// How often the buffer has been written.
    pub fn version(&self) -> u64 {
        self.buffer.version()
    }

    /// Tells that the buffer has been written: for kernels from outside, which write without the tensor's own methods.
    pub fn mark_written(&self) {
        self.buffer.bump();
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Records the range of indices just written: the buffer's range becomes it, or, if the view covers only a part of the
    /// buffer, the union of both.
    pub(crate) fn note_indices(&self, written: Option<IndexRange>) {
        let whole = self.len() == self.buffer.len() && !self.layout.may_overlap_itself();
        let range = match (written, self.buffer.index_range()) {
            (Some(new), _) if whole => Some(new),
            (Some(new), Some(old)) => Some(new.union(old)),
            _ => None,
        };
        self.buffer.set_index_range(range);
    }

    // ---- views

    /// A view with dimensions in the order `order`.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        Ok(self.with_layout(self.layout.permute(order)?))
    }

    /// A view with two dimensions swapped.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        let mut order: Vec<usize> = (0..self.rank()).collect();
        if a >= order.len() || b >= order.len() {
            return Err(Error::shape("transpose", format!("no dimensions {a} and {b} in {:?}", self.shape())));
        }
        order.swap(a, b);
        self.permute(&order)
    }

    /// A view of the last two dimensions swapped.
    pub fn t(&self) -> Result<Tensor> {
        match self.rank() {
            r if r >= 2 => self.transpose(r - 2, r - 1),
            _ => Err(Error::shape("t", format!("at least 2 dimensions expected, got {:?}", self.shape()))),
        }
    }

    /// A view of the elements `start..start + length` along `dim`.
    pub fn narrow(&self, dim: usize, start: usize, length: usize) -> Result<Tensor> {
        Ok(self.with_layout(self.layout.narrow(dim, start, length)?))
    }

    /// A view that repeats dimensions of size 1 (and new leading ones) to reach `shape`.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(self.with_layout(self.layout.broadcast_to(shape)?))
    }

    /// The elements in row-major order under another shape: a view where strides allow it, else a copy.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        match self.layout.reshape(shape)? {
            Some(layout) => Ok(self.with_layout(layout)),
            None => self.contiguous()?.reshape(shape),
        }
    }

    /// The elements under another shape as a view.
    ///
    /// # Errors
    /// The strides would need a copy ([`Tensor::reshape`] makes one).
    pub fn view(&self, shape: &[usize]) -> Result<Tensor> {
        match self.layout.reshape(shape)? {
            Some(layout) => Ok(self.with_layout(layout)),
            None => Err(Error::shape("view", format!("{:?} is no view of {:?}; use reshape", shape, self.layout))),
        }
    }

    /// A view with a dimension of size 1 inserted at `dim`.
    pub fn unsqueeze(&self, dim: usize) -> Result<Tensor> {
        let mut shape = self.shape().to_vec();
        if dim > shape.len() {
            return Err(Error::shape("unsqueeze", format!("no place {dim} in {:?}", self.shape())));
        }
        shape.insert(dim, 1);
        self.view(&shape)
    }

    /// A view without dimension `dim`, which must have size 1.
    pub fn squeeze(&self, dim: usize) -> Result<Tensor> {
        let mut shape = self.shape().to_vec();
        if dim >= shape.len() || shape[dim] != 1 {
            return Err(Error::shape("squeeze", format!("dimension {dim} of {:?} is not of size 1", self.shape())));
        }
        shape.remove(dim);
        self.view(&shape)
    }

    /// This tensor if its elements are contiguous, else a contiguous copy.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.copy() }
    }

    /// This tensor if its last dimension is contiguous in memory, else a contiguous copy.
    pub(crate) fn contiguous_rows(&self) -> Result<Tensor> {
        if self.layout.has_contiguous_rows() { Ok(self.clone()) } else { self.copy() }
    }

    // ---- to the host and between devices

    /// The elements in row-major order on the host.
    ///
    /// # Errors
    /// `E` is not the tensor's dtype.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        if E::DTYPE != self.dtype() {
            return Err(Error::dtype("to_vec", E::DTYPE, self.dtype()));
        }
        let x = self.contiguous()?;
        let mut data = vec![E::zeroed(); self.len()];
        self.device().backend().download(&x, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    /// The elements in row-major order as f64, whatever the dtype.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        self.cast(DType::F64)?.to_vec()
    }

    /// The single element as f64. Waits for the device.
    ///
    /// # Errors
    /// More or less than one element.
    pub fn item(&self) -> Result<f64> {
        match self.to_f64_vec()?[..] {
            [x] => Ok(x),
            _ => Err(Error::shape("item", format!("one element expected, got the shape {:?}", self.shape()))),
        }
    }

    /// The same elements on `device`: this tensor if it lives there, else a copy.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let x = self.contiguous()?;
        let mut bytes = vec![0u8; x.len() * x.dtype().size()];
        x.device().backend().download(&x, &mut bytes)?;
        let out = Tensor::empty(x.shape(), x.dtype(), device)?;
        device.backend().upload(&out, &bytes)?;
        out.buffer.set_index_range(x.buffer.index_range());
        out.mark_written();
        Ok(out)
    }

    /// Overwrites the elements, in row-major order, from host memory.
    ///
    /// # Errors
    /// Another number of elements, another dtype, a tensor that is not contiguous.
    pub fn write_from<E: Element>(&self, data: &[E]) -> Result<()> {
        if E::DTYPE != self.dtype() {
            return Err(Error::dtype("write_from", E::DTYPE, self.dtype()));
        }
        if data.len() != self.len() || !self.is_contiguous() {
            return Err(Error::shape(
                "write_from",
                format!("{} elements for the layout {:?}, which must be contiguous", data.len(), self.layout),
            ));
        }
        self.device().backend().upload(self, bytemuck::cast_slice(data))?;
        if let Some(written) = IndexRange::of_host(data) {
            self.note_indices(Some(written));
        }
        self.mark_written();
        Ok(())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "Tensor({:?}, {}, {}", self.shape(), self.dtype(), self.device())?;
        if let Ok(values) = self.to_f64_vec() {
            write!(f, ", {:?}{}", &values[..values.len().min(SHOWN)], if values.len() > SHOWN { " ..." } else { "" })?;
        }
        f.write_str(")")
    }
}
