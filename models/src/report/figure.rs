//! A chart with its heading, its legend and what has to be said about it.

use super::chart::{Chart, Look};
use super::ink::Ink;
use super::page::escape;
use crate::error::Result;

/// An entry of a legend.
pub(super) struct Key {
    pub(super) ink: Ink,
    pub(super) look: Look,
    pub(super) text: String,
}

impl Key {
    pub(super) fn new(ink: Ink, look: Look, text: impl Into<String>) -> Self {
        Self { ink, look, text: text.into() }
    }

    fn html(&self) -> String {
        let look = match self.look {
            Look::Faint => " faint",
            Look::Solid => "",
            Look::Marked => " marked",
        };
        let text = escape(&self.text);
        format!("<li><span class=\"swatch {}{look}\"></span>{text}</li>", self.ink.name())
    }
}

/// A legend as HTML; nothing without entries.
pub(super) fn legend(keys: &[Key]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let keys: String = keys.iter().map(Key::html).collect();
    format!("<ul class=\"legend\">{keys}</ul>\n")
}

/// The chart as HTML; nothing where there is nothing to draw.
///
/// # Errors
/// A chart that cannot be drawn.
pub(super) fn figure(heading: &str, chart: &Chart<'_>, keys: &[Key], caption: &str) -> Result<String> {
    let Some(drawing) = chart.draw()? else {
        return Ok(String::new());
    };
    let cut = if drawing.cut { " What lies above the upper edge is cut." } else { "" };
    let caption = match format!("{caption}{cut}").trim() {
        "" => String::new(),
        text => format!("<p>{}</p>\n", escape(text)),
    };
    let class = if chart.size.0 < 600 { "small" } else { "wide" };
    Ok(format!(
        "<figure class=\"{class}\">\n<figcaption><h3>{}</h3>\n{}</figcaption>\n\
         <div class=\"scroll\">{}</div>\n{caption}</figure>\n",
        escape(heading),
        legend(keys),
        drawing.svg
    ))
}
