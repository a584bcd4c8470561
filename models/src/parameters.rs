//! All parameters of a model in one flat buffer, their gradients in another of the same layout. First those that weight
//! decay shrinks (two or more dimensions, embeddings and positions included), then the rest; each starts at a multiple of
//! 256 bytes, and the gaps are zero, so that AdamW is one launch, the global norm one pass and a checkpoint one write.
//! Values and gradients are f32 or f64. A bf16 model computes with a rounded copy of its values, the masters, which the optimizer updates.
//! Each parameter draws its initial values from a range of the counter-based generator of its own.

use std::collections::HashMap;

use patchgpt_autograd::Var;
use patchgpt_tensor::{DType, Device, Distribution, Tensor};

use crate::{Error, Result};

/// Where parameters start: at multiples of so many bytes.
pub const ALIGNMENT_BYTES: usize = 256;

/// log2 of the random numbers set aside for each parameter; 2^24 parameters of up to 2^40 elements.
const RANDOM_RANGE_BITS: u32 = 40;

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Zeros: biases.
    Zeros,
    /// Ones: weights of norms.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// What a parameter is before it has memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Name, unique in the model.
    pub name: String,
    /// Shape; weights are [out, in].
    pub shape: Vec<usize>,
    /// Initial values.
    pub init: Init,
    /// The first dimension in memory is rounded up to a multiple of this; the additional rows stay zero and no view shows them.
    pub row_multiple: usize,
}

impl ParameterSpec {
    /// A parameter whose memory holds its rows and no more.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init) -> ParameterSpec {
        ParameterSpec { name: name.into(), shape: shape.to_vec(), init, row_multiple: 1 }
    }

    /// The same parameter with room for a multiple of `row_multiple` rows (at least 1).
    pub fn with_rows_padded(self, row_multiple: usize) -> ParameterSpec {
        ParameterSpec { row_multiple: row_multiple.max(1), ..self }
    }

    fn decays(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Elements in memory; `None` if they cannot be counted.
    fn stored_len(&self) -> Option<usize> {
        let (first, rest) = match self.shape.split_first() {
            Some((first, rest)) => (first.checked_next_multiple_of(self.row_multiple)?, rest),
            None => (1, &[][..]),
        };
        rest.iter().try_fold(first, |len, &d| len.checked_mul(d))
    }
}

/// A parameter in its place.
pub struct Parameter {
    spec: ParameterSpec,
    start: usize,
    var: Var,
}

impl Parameter {
    /// Name, unique in the model.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Shape, padding rows not counted.
    pub fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    /// Initial values.
    pub fn init(&self) -> Init {
        self.spec.init
    }

    /// Index of the first element in the flat buffers.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The parameter as a leaf of the graph, in the type that the model computes in; backward adds into the flat gradient.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The view of this parameter in a flat tensor of the model's layout, such as the gradients or a moment.
    ///
    /// # Errors
    /// A tensor that is too short.
    pub fn view(&self, flat: &Tensor) -> Result<Tensor> {
        let len = self.spec.shape.iter().product();
        Ok(flat.narrow(0, self.start, len)?.view(&self.spec.shape)?)
    }
}

/// The parameters of a model and their gradients, each one flat buffer.
pub struct Parameters {
    values: Tensor,
    /// What a bf16 model computes with: the values, rounded.
    rounded: Option<Tensor>,
    gradients: Tensor,
    decay_len: usize,
    entries: Vec<Parameter>,
    by_name: HashMap<String, usize>,
}

impl Parameters {
    /// Lays out `specs` and draws the initial values: parameter number i of `specs` from a range of random numbers of its own,
    /// so that its values depend on `seed`, i and its shape only.
    ///
    /// # Errors
    /// Two parameters of one name, a dtype other than f32, f64 and bf16, more elements than can be counted or than the device holds.
    pub fn build(specs: Vec<ParameterSpec>, dtype: DType, device: &Device, seed: u64) -> Result<Parameters> {
        let parameters = Parameters::zeros(specs, dtype, device)?;
        for (index, entry) in parameters.entries.iter().enumerate() {
            let tensor = entry.view(&parameters.values)?;
            match entry.spec.init {
                Init::Zeros => {}
                Init::Ones => tensor.fill_(1.0)?,
                Init::Normal { std } => {
                    let offset = (index as u64) << RANDOM_RANGE_BITS;
                    tensor.random_(Distribution::Normal { mean: 0.0, std }, seed, offset)?;
                }
            }
        }
        parameters.refresh()?;
        Ok(parameters)
    }

    /// Lays out `specs` with every value zero: for parameters that are loaded.
    ///
    /// # Errors
    /// As [`Parameters::build`].
    pub fn zeros(specs: Vec<ParameterSpec>, dtype: DType, device: &Device) -> Result<Parameters> {
        let alignment = ALIGNMENT_BYTES / dtype.size();
        let (starts, decay_len, len) = layout(&specs, alignment)?;
        let master = dtype.accumulator();
        let values = Tensor::zeros(&[len], master, device)?;
        let gradients = Tensor::zeros(&[len], master, device)?;
        let rounded = if dtype == master { None } else { Some(Tensor::zeros(&[len], dtype, device)?) };
        let mut entries = Vec::with_capacity(specs.len());
        let mut by_name = HashMap::with_capacity(specs.len());
        for (spec, start) in specs.into_iter().zip(starts) {
            let elements = spec.shape.iter().product();
            let view = |flat: &Tensor| flat.narrow(0, start, elements)?.view(&spec.shape);
            let var = Var::parameter_with_gradient(view(rounded.as_ref().unwrap_or(&values))?, view(&gradients)?)?;
            if by_name.insert(spec.name.clone(), entries.len()).is_some() {
                return Err(Error::Config(format!(
                    "two parameters are named `{}`: names must be unique in a model",
                    spec.name
                )));
            }
            entries.push(Parameter { spec, start, var });
        }
        Ok(Parameters { values, rounded, gradients, decay_len, entries, by_name })
    }

    /// The parameter `name` as a leaf of the graph.
    ///
    /// # Errors
    /// No parameter of that name.
    pub fn var(&self, name: &str) -> Result<&Var> {
        self.get(name).map(Parameter::var)
    }

    /// The parameter `name`.
    ///
    /// # Errors
    /// No parameter of that name.
    pub fn get(&self, name: &str) -> Result<&Parameter> {
        match self.by_name.get(name) {
            Some(&index) => Ok(&self.entries[index]),
            None => Err(Error::Config(format!(
                "the model has no parameter `{name}`; it has {} parameters, the first `{}`",
                self.entries.len(),
                self.entries.first().map_or("", Parameter::name)
            ))),
        }
    }

    /// The parameters in the order of their specs.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.entries.iter()
    }

    /// Brings what a bf16 model computes with up to date; to be called after the values were written. Nothing to do in f32 and f64.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn refresh(&self) -> Result<()> {
        match &self.rounded {
            Some(rounded) => Ok(rounded.copy_(&self.values)?),
            None => Ok(()),
        }
    }

    /// Tells that a replayed step has written values and gradients, which no method of theirs has seen.
    pub(crate) fn mark_written(&self) {
        [Some(&self.values), self.rounded.as_ref(), Some(&self.gradients)]
            .into_iter()
            .flatten()
            .for_each(Tensor::mark_written);
    }

    /// All values in f32 or f64, flat, gaps included. After writing to them call [`Parameters::refresh`].
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// What a bf16 model computes with, flat, in the layout of the values; `None` in f32 and f64, where that is the values.
    pub(crate) fn rounded(&self) -> Option<&Tensor> {
        self.rounded.as_ref()
    }

    /// All gradients, flat, in the layout of the values.
    pub fn gradients(&self) -> &Tensor {
        &self.gradients
    }

    /// Sets every gradient to zero.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn zero_gradients(&self) -> Result<()> {
        Ok(self.gradients.fill_(0.0)?)
    }

    /// The first so many elements of the flat buffers belong to parameters that weight decay shrinks.
    pub fn decay_len(&self) -> usize {
        self.decay_len
    }

    /// The type that the model computes in: f32, f64 or bf16.
    pub fn dtype(&self) -> DType {
        self.rounded.as_ref().unwrap_or(&self.values).dtype()
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        self.values.device()
    }
}

/// Start of every spec, the end of the decaying ones and the end of all, in elements.
fn layout(specs: &[ParameterSpec], alignment: usize) -> Result<(Vec<usize>, usize, usize)> {
    let mut starts = vec![0; specs.len()];
    let (mut end, mut decay_len) = (0usize, 0);
    for decaying in [true, false] {
        for (start, spec) in starts.iter_mut().zip(specs).filter(|(_, s)| s.decays() == decaying) {
            *start = end;
            end = spec
                .stored_len()
                .and_then(|len| end.checked_add(len))
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| {
                    Error::Config(format!(
                        "the parameter `{}` of shape {:?} makes the model larger than any memory: choose smaller sizes",
                        spec.name, spec.shape
                    ))
                })?;
        }
        if decaying {
            decay_len = end;
        }
    }
    Ok((starts, decay_len, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<ParameterSpec> {
        vec![
            ParameterSpec::new("norm", &[5], Init::Ones),
            ParameterSpec::new("table", &[3, 5], Init::Normal { std: 1.0 }).with_rows_padded(64),
            ParameterSpec::new("bias", &[7], Init::Zeros),
            ParameterSpec::new("matrix", &[2, 5], Init::Normal { std: 1.0 }),
        ]
    }

    #[test]
    fn decaying_parameters_come_first_and_gaps_are_zero() {
        let device = Device::cpu().unwrap();
        for dtype in [DType::F32, DType::F64] {
            let parameters = Parameters::build(specs(), dtype, &device, 1).unwrap();
            let unit = ALIGNMENT_BYTES / dtype.size();
            let start = |name| parameters.get(name).unwrap().start();
            let table = (64 * 5usize).next_multiple_of(unit);
            assert_eq!((start("table"), start("matrix")), (0, table));
            assert_eq!(parameters.decay_len(), table + unit);
            assert_eq!((start("norm"), start("bias")), (table + unit, table + 2 * unit));
            assert_eq!(parameters.values().len(), table + 3 * unit);

            let values = parameters.values().to_f64_vec().unwrap();
            let mut inside = vec![false; values.len()];
            for p in parameters.iter() {
                inside[p.start()..p.start() + p.shape().iter().product::<usize>()].fill(true);
            }
            assert!(values.iter().zip(&inside).all(|(&v, &inside)| inside || v == 0.0));
            assert!(values[..15].iter().all(|&v| v != 0.0));
        }
    }

    #[test]
    fn values_depend_on_seed_and_place_among_the_specs_only() {
        let device = Device::cpu().unwrap();
        let values = |seed, dtype| {
            let parameters = Parameters::build(specs(), dtype, &device, seed).unwrap();
            let of = |name| parameters.var(name).unwrap().tensor().to_f64_vec().unwrap();
            (of("table"), of("matrix"))
        };
        let (table, matrix) = values(1, DType::F64);
        assert_eq!((table.clone(), matrix.clone()), values(1, DType::F64));
        assert_ne!(table, values(2, DType::F64).0);
        assert_ne!(table[..10], matrix[..]);
        let rounded: Vec<f64> = table.iter().map(|&v| f64::from(v as f32)).collect();
        assert_eq!(rounded, values(1, DType::F32).0, "f32 is the rounded f64");
        // Another parameter in front of the others in memory does not change what the others draw.
        let mut longer = specs();
        longer.push(ParameterSpec::new("head", &[9, 5], Init::Normal { std: 1.0 }));
        let longer = Parameters::build(longer, DType::F64, &device, 1).unwrap();
        assert_eq!(longer.var("matrix").unwrap().tensor().to_f64_vec().unwrap(), matrix);
    }

    #[test]
    fn gradients_are_views_of_the_flat_buffer() {
        let device = Device::cpu().unwrap();
        let parameters = Parameters::build(specs(), DType::F64, &device, 1).unwrap();
        let matrix = parameters.get("matrix").unwrap();
        matrix.var().square().unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = matrix.view(parameters.gradients()).unwrap();
        let expected = matrix.var().tensor().affine(2.0, 0.0).unwrap();
        assert_eq!(gradient.max_abs_diff(&expected).unwrap(), 0.0);
        parameters.zero_gradients().unwrap();
        assert!(gradient.to_f64_vec().unwrap().iter().all(|&g| g == 0.0));
    }

    #[test]
    fn mistakes_are_errors() {
        let device = Device::cpu().unwrap();
        let build = |specs| Parameters::build(specs, DType::F32, &device, 1);
        let twice = vec![ParameterSpec::new("a", &[2], Init::Ones), ParameterSpec::new("a", &[3], Init::Ones)];
        assert!(build(twice).err().unwrap().to_string().contains("`a`"));
        let huge = vec![ParameterSpec::new("huge", &[usize::MAX, 3], Init::Zeros)];
        assert!(build(huge).err().unwrap().to_string().contains("huge"));
        let parameters = build(specs()).unwrap();
        assert!(parameters.var("none").err().unwrap().to_string().contains("`none`"));
    }
}
