//! A setting that takes one of a few named values: the enum, its names in files and flags, and the error that lists
//! them, all from one table of `Variant = "name"` rows.

/// Declares an enum whose variants have fixed names; implements `Display`, `FromStr`, `Serialize` and `Deserialize`
/// through those names. The string after the enum's name says in an error what the value was meant to be.
macro_rules! choice {
    ($(#[$meta:meta])* $vis:vis enum $name:ident: $what:literal { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// Every value, in the order in which they are listed to a user.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name in configuration files and on the command line.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                $name::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(|| {
                    $crate::Error::Config($crate::config::choice::refusal($what, text, &[$($text),+]))
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use choice;

/// Values that exist in the field but not here yet, so that the error can say so instead of "unknown".
const NOT_YET: &[&str] = &["f16", "bfloat16", "float16", "metal", "mps"];

/// The sentence for a value that is not among `available`.
pub(crate) fn refusal(what: &str, value: &str, available: &[&str]) -> String {
    let available = available.join(", ");
    if NOT_YET.contains(&value) {
        format!("the {what} `{value}` is not available on this device yet; available: {available}")
    } else {
        format!("`{value}` is not a {what}; available: {available}")
    }
}
