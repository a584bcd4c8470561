//! The colours of the charts: the palette of Okabe and Ito, told apart with any colour vision, in a light and a dark
//! version. Plotters writes the light colour into the SVG; the rules of [`css`] select on that attribute and put the
//! colour of the reader's scheme in its place, so that one drawing serves both.

use std::fmt::Write;

use plotters::style::RGBColor;

use crate::train::stages::StageName;

/// What a mark stands for; each has a colour of its own, since the style sheet knows marks by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Patch,
    /// Patch loss above its floor: the patch colour, dashed.
    Floor,
    Token,
    Validation,
    /// A fourth regime in a comparison.
    Fourth,
    Grid,
    Axis,
    Label,
    /// The line where one stage ends, dashed.
    Switch,
}

impl Ink {
    const ALL: [Ink; 9] = [
        Ink::Patch,
        Ink::Floor,
        Ink::Token,
        Ink::Validation,
        Ink::Fourth,
        Ink::Grid,
        Ink::Axis,
        Ink::Label,
        Ink::Switch,
    ];

    /// Colour of an arm of a comparison; the baseline is token-level training and wears its colour.
    pub(super) fn of_arm(index: usize) -> Self {
        [Ink::Token, Ink::Patch, Ink::Validation, Ink::Fourth][index % 4]
    }

    pub(super) fn of_stage(stage: StageName) -> Self {
        match stage {
            StageName::Patch => Ink::Patch,
            StageName::Token => Ink::Token,
        }
    }

    /// Name of its CSS variable and class.
    pub(super) fn name(self) -> &'static str {
        match self {
            Ink::Patch => "patch",
            Ink::Floor => "floor",
            Ink::Token => "token",
            Ink::Validation => "validation",
            Ink::Fourth => "fourth",
            Ink::Grid => "grid",
            Ink::Axis => "axis",
            Ink::Label => "label",
            Ink::Switch => "switch",
        }
    }

    /// Colours on white and on near black.
    fn colors(self) -> [u32; 2] {
        match self {
            Ink::Patch => [0x0072b2, 0x56b4e9],
            Ink::Floor => [0x0072b3, 0x56b4ea],
            Ink::Token => [0xd55e00, 0xf08a3c],
            Ink::Validation => [0x009e73, 0x2fc79b],
            Ink::Fourth => [0xaa5b8c, 0xd993ba],
            Ink::Grid => [0xe6e9ec, 0x2a3036],
            Ink::Axis => [0xaab2ba, 0x59626b],
            Ink::Label => [0x57616b, 0x9fa9b3],
            Ink::Switch => [0x7c868f, 0x7f8993],
        }
    }

    pub(super) fn color(self) -> RGBColor {
        let [_, red, green, blue] = self.colors()[0].to_be_bytes();
        RGBColor(red, green, blue)
    }
}

/// Variables for both schemes, and the rules that put them on what Plotters drew.
pub(super) fn css() -> String {
    let mut css = String::new();
    for (scheme, (open, close)) in
        [(":root{", "}\n"), ("@media (prefers-color-scheme:dark){:root{", "}}\n")].iter().enumerate()
    {
        css.push_str(open);
        for ink in Ink::ALL {
            let _ = write!(css, "--{}:#{:06x};", ink.name(), ink.colors()[scheme]);
        }
        css.push_str(close);
    }
    for ink in Ink::ALL {
        let (name, drawn) = (ink.name(), ink.colors()[0]);
        for property in ["stroke", "fill"] {
            let _ = writeln!(css, "svg [{property}=\"#{drawn:06X}\"]{{{property}:var(--{name})}}");
        }
        let _ = writeln!(css, ".swatch.{name}{{color:var(--{name})}}");
    }
    for (ink, dash) in [(Ink::Floor, "20 14"), (Ink::Switch, "8 12")] {
        let _ = writeln!(css, "svg [stroke=\"#{:06X}\"]{{stroke-dasharray:{dash}}}", ink.colors()[0]);
    }
    css
}
