//! Kernel families with several implementations, and the choice of one by name: `attention=sm80`.

use std::collections::BTreeMap;

use patchgpt_tensor::Result;

use crate::device::Cuda;
use crate::error::backend;
use crate::ops::{adamw, causal_attention, cross_entropy, gemm, layer_norm, rms_norm};

/// A kernel family and its variants, the preferred first: names and what they are for.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What the family is called in a choice.
    pub name: &'static str,
    /// Name and description of each variant.
    pub variants: &'static [(&'static str, &'static str)],
}

/// The families that have more than one variant.
pub const FAMILIES: &[Family] = &[
    causal_attention::FAMILY,
    gemm::FAMILY,
    cross_entropy::FAMILY,
    rms_norm::FAMILY,
    layer_norm::FAMILY,
    adamw::FAMILY,
];

/// A row of a family's table: an implementation with what it computes by.
pub(crate) struct Variant<Implementation: 'static> {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) implementation: Implementation,
}

/// Names and descriptions of a table's rows.
pub(crate) const fn names<Implementation, const N: usize>(
    table: &[Variant<Implementation>; N],
) -> [(&'static str, &'static str); N] {
    let mut names = [("", ""); N];
    let mut i = 0;
    while i < N {
        names[i] = (table[i].name, table[i].about);
        i += 1;
    }
    names
}

/// The variable that chooses where nothing else does.
const VARIABLE: &str = "PATCHGPT_KERNEL";

/// Family and variant of each choice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choices(BTreeMap<&'static str, &'static str>);

impl Choices {
    /// What `PATCHGPT_KERNEL` chooses.
    pub(crate) fn from_environment() -> std::result::Result<Choices, String> {
        let mut choices = Choices::default();
        if let Ok(text) = std::env::var(VARIABLE) {
            choices.add(&text).map_err(|message| format!("{VARIABLE}: {message}"))?;
        }
        Ok(choices)
    }

    /// Adds `family=variant`, several of them with commas between.
    fn add(&mut self, text: &str) -> std::result::Result<(), String> {
        for choice in text.split(',').map(str::trim).filter(|choice| !choice.is_empty()) {
            let (family, variant) = choice.split_once('=').unwrap_or((choice, ""));
            let Some(family) = FAMILIES.iter().find(|known| known.name == family.trim()) else {
                let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
                return Err(format!("`{choice}`: the families with variants are {}", names.join(", ")));
            };
            let Some((variant, _)) = family.variants.iter().find(|(name, _)| *name == variant.trim()) else {
                let names: Vec<&str> = family.variants.iter().map(|(name, _)| *name).collect();
                return Err(format!("`{choice}`: the variants of {} are {}", family.name, names.join(", ")));
            };
            self.0.insert(family.name, variant);
        }
        Ok(())
    }
}

/// Checks a choice such as `attention=sm80` without a device.
///
/// # Errors
/// A family or a variant that there is not; names those that there are.
pub fn check_kernel(choice: &str) -> std::result::Result<(), String> {
    Choices::default().add(choice)
}

impl Cuda {
    /// This device with one variant of a kernel family, `attention=sm80`, or several with commas between. Without it, and
    /// without the variable `PATCHGPT_KERNEL`, the first variant of [`FAMILIES`] that takes a problem computes it.
    ///
    /// # Errors
    /// A family or a variant that there is not. One that does not take a problem is an error of that problem.
    pub fn with_kernel(mut self, choice: &str) -> Result<Cuda> {
        match self.choices.add(choice) {
            Ok(()) => Ok(self),
            Err(message) => Err(backend(&self, message)),
        }
    }

    /// The implementation of `family` that has been chosen, or else the first of its table.
    pub(crate) fn variant<Implementation>(
        &self,
        family: &Family,
        table: &'static [Variant<Implementation>],
    ) -> &'static Implementation {
        let chosen = table.iter().find(|variant| Some(variant.name) == self.chosen(family));
        &chosen.unwrap_or(&table[0]).implementation
    }

    /// The same of a family in which not every implementation `takes` every problem: the first that does where none is chosen.
    ///
    /// # Errors
    /// None does, or not the chosen one; `problem` says what it is.
    pub(crate) fn variant_for<Implementation>(
        &self,
        family: &Family,
        table: &'static [Variant<Implementation>],
        takes: impl Fn(&Implementation) -> bool,
        problem: impl FnOnce() -> String,
    ) -> Result<&'static Implementation> {
        let chosen = self.chosen(family);
        let mut named = table.iter().filter(|variant| chosen.is_none_or(|name| name == variant.name));
        match named.find(|variant| takes(&variant.implementation)) {
            Some(variant) => Ok(&variant.implementation),
            None => {
                let none =
                    chosen.map_or("there is no kernel".into(), |name| format!("the chosen kernel {name} is not"));
                Err(backend(self, format!("{none} for {}", problem())))
            }
        }
    }

    /// The name of the variant that has been chosen.
    pub(crate) fn chosen(&self, family: &Family) -> Option<&'static str> {
        self.choices.0.get(family.name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_name_what_there_is() {
        let add = |text| {
            let mut choices = Choices::default();
            choices.add(text).map(|()| choices.0.get("attention").copied())
        };
        assert_eq!(add("attention=sm80"), Ok(Some("sm80")));
        assert_eq!(add(" attention = portable ,"), Ok(Some("portable")));
        assert_eq!(add(""), Ok(None));
        assert!(add("attention=sm70").unwrap_err().contains("sm90, sm80, portable"));
        assert!(add("attention").unwrap_err().contains("the variants of attention are"));
        assert!(add("gemm=tf32").unwrap_err().contains("the variants of gemm are lt, lt_gelu, blas"));
        assert!(add("convolution=sm80").unwrap_err().contains("the families with variants are attention, gemm, "));
    }
}
