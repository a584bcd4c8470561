//! The frame of a page: head with styles, escaping, tables, key figures, quoted text.

use std::fmt::{Display, Write};

use super::ink;

/// Text made harmless for HTML, between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Controls have no place in HTML; a model that writes bytes may write them all the same.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{9f}' => {
                escaped.push('\u{fffd}');
            }
            character => escaped.push(character),
        }
    }
    escaped
}

/// A whole page around `body`, which is HTML; the title is text.
pub(super) fn page(title: &str, subtitle: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}{}</style>\n\
         </head>\n<body>\n<main>\n<header><h1>{title}</h1><p>{}</p></header>\n{body}</main>\n</body>\n</html>\n",
        include_str!("page.css"),
        ink::css(),
        escape(subtitle),
        title = escape(title),
    )
}

/// A section with a heading; both the heading and what `body` holds are HTML of ours.
pub(super) fn section(heading: &str, body: &str) -> String {
    format!("<section>\n<h2>{heading}</h2>\n{body}</section>\n")
}

/// A paragraph of text.
pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// Sentences as a list, or nothing.
pub(super) fn notes(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    section("Notes", &format!("<ul class=\"notes\">\n{items}</ul>\n"))
}

/// Text as it stands, in a frame.
pub(super) fn quoted(text: &str, class: &str) -> String {
    format!("<pre class=\"{class}\">{}</pre>\n", escape(text))
}

/// The key figures of a page: name, value, and what to hold it against.
pub(super) fn figures(figures: &[(&str, String, String)]) -> String {
    let mut html = String::from("<dl class=\"figures\">\n");
    for (name, value, beside) in figures {
        let (name, value, beside) = (escape(name), escape(value), escape(beside));
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{value}<small>{beside}</small></dd></div>");
    }
    html + "</dl>\n"
}

/// A table whose first column names its rows and whose other columns hold numbers.
pub(super) fn table<H: Display, C: Display>(head: &[H], rows: &[Vec<C>]) -> String {
    let row = |cells: Vec<String>, tag: &str| {
        let mut html = String::from("<tr>");
        for (index, cell) in cells.iter().enumerate() {
            let tag = if index == 0 { "th" } else { tag };
            let scope = if index == 0 { " scope=\"row\"" } else { "" };
            let _ = write!(html, "<{tag}{scope}>{}</{tag}>", escape(cell));
        }
        html + "</tr>\n"
    };
    let head = row(head.iter().map(H::to_string).collect(), "th").replace(" scope=\"row\"", "");
    let rows: String = rows.iter().map(|cells| row(cells.iter().map(C::to_string).collect(), "td")).collect();
    format!("<div class=\"scroll\"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n")
}
