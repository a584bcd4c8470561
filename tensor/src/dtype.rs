//! Element types: f64 and f32 compute, f16 and bf16 store and cast, i32 and i64 index.

use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 double precision; what gradient checks compute in.
    F64,
    /// IEEE 754 single precision; the default of training.
    F32,
    /// IEEE 754 half precision; for storage and loading.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// 32-bit integer: token ids, targets, positions.
    I32,
    /// 64-bit integer, as some files hold their indices.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The type's name in messages, configuration files and kernels.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::I64 => "i64",
        }
    }

    /// Whether the type is a floating-point type.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::I64)
    }

    /// Distance from 1 to the next larger number (2^-52, 2^-23, 2^-10, 2^-7); 0 for integers.
    pub fn epsilon(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON,
            DType::F32 => f32::EPSILON as f64,
            DType::F16 => 2f64.powi(-10),
            DType::BF16 => 2f64.powi(-7),
            DType::I32 | DType::I64 => 0.0,
        }
    }

    /// The type that sums, norms, softmax statistics and losses of this type are kept in:
    /// f64 for f64 and f32 for every other floating-point type.
    pub fn accumulator(self) -> DType {
        if self == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        Ok(match s {
            "f64" => DType::F64,
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            "i32" => DType::I32,
            "i64" => DType::I64,
            other => return Err(format!("unknown dtype '{other}'; expected f64, f32, f16, bf16, i32 or i64")),
        })
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug + PartialEq {
    /// The corresponding [`DType`].
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => BF16, i32 => I32, i64 => I64);
