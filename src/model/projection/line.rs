//! One line, field by field, as JSON or as comma separated values.

use std::fmt::{Display, Write};

use uuid::Uuid;

use super::LineFormat;
use super::jsonb::{for_each_member, is_object, push_compact, push_escaped};

/// A line that is being written. Fields come in the order of the projection's columns, each once.
#[derive(Debug)]
pub(super) struct Line<'o> {
    format: LineFormat,
    out: &'o mut String,
    is_empty: bool,
}

impl<'o> Line<'o> {
    /// Begins a line at the end of `out`.
    pub(super) fn begin(format: LineFormat, out: &'o mut String) -> Self {
        if format == LineFormat::JsonLines {
            out.push('{');
        }
        Self { format, out, is_empty: true }
    }

    /// Ends the line.
    pub(super) fn end(self) {
        self.out.push_str(match self.format {
            LineFormat::JsonLines => "}\n",
            LineFormat::Csv => "\n",
        });
    }

    /// An object of its own.
    pub(super) fn object(write: impl FnOnce(&mut Line<'_>)) -> String {
        let mut out = String::new();
        write_enclosed(["{", "}"], write, &mut out);
        out
    }

    /// An object, written in place.
    pub(super) fn nested(&mut self, name: &str, write: impl FnOnce(&mut Line<'_>)) {
        self.enclosed(name, ["{", "}"], write);
    }

    /// A list of one object, written in place.
    pub(super) fn nested_in_list(&mut self, name: &str, write: impl FnOnce(&mut Line<'_>)) {
        self.enclosed(name, ["[{", "}]"], write);
    }

    fn enclosed(&mut self, name: &str, brackets: [&str; 2], write: impl FnOnce(&mut Line<'_>)) {
        self.name(name);
        match self.format {
            LineFormat::JsonLines => write_enclosed(brackets, write, self.out),
            LineFormat::Csv => {
                let mut cell = String::new();
                write_enclosed(brackets, write, &mut cell);
                push_cell(&cell, self.out);
            }
        }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        match self.format {
            LineFormat::JsonLines => {
                self.out.push('"');
                push_escaped(value, self.out);
                self.out.push('"');
            }
            LineFormat::Csv => push_cell(value, self.out),
        }
    }

    /// A text that is given in parts.
    pub(super) fn text_of<'t>(&mut self, name: &str, parts: impl IntoIterator<Item = &'t str>) {
        if self.format == LineFormat::Csv {
            return self.text(name, &parts.into_iter().collect::<String>());
        }
        self.name(name);
        self.out.push('"');
        for part in parts {
            push_escaped(part, self.out);
        }
        self.out.push('"');
    }

    /// A text, or null.
    pub(super) fn optional_text(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.null(name),
        }
    }

    /// An id, in lower case and hyphenated.
    pub(super) fn id(&mut self, name: &str, value: Uuid) {
        self.text(name, value.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    }

    /// A number as it prints.
    pub(super) fn number(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let written = write!(self.out, "{value}");
        debug_assert!(written.is_ok(), "writing to a string can't fail");
    }

    /// A number as its text stands.
    pub(super) fn numeral(&mut self, name: &str, text: &str) {
        self.name(name);
        self.out.push_str(text);
    }

    /// A truth value.
    pub(super) fn truth(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.push_str(if value { "true" } else { "false" });
    }

    /// JSON as it is, but for the white space between its parts.
    pub(super) fn json(&mut self, name: &str, value: &str) {
        self.name(name);
        match self.format {
            LineFormat::JsonLines => push_compact(value, self.out),
            LineFormat::Csv => {
                let mut compact = String::with_capacity(value.len());
                push_compact(value, &mut compact);
                push_cell(&compact, self.out);
            }
        }
    }

    /// Nothing, said so.
    pub(super) fn null(&mut self, name: &str) {
        self.name(name);
        if self.format == LineFormat::JsonLines {
            self.out.push_str("null");
        }
    }

    /// Nothing, left out where that can be.
    pub(super) fn absent(&mut self, name: &str) {
        if self.format == LineFormat::Csv {
            self.name(name);
        }
    }

    /// The members of `object` beside ours, by the names that `rename` gives (escaped, as it gets them); what is no
    /// object stands whole under `name`, and so does everything in CSV.
    pub(super) fn spread(&mut self, name: &str, object: &str, rename: impl Fn(&str) -> Option<&'static str>) {
        if self.format == LineFormat::Csv || !is_object(object) {
            return self.json(name, object);
        }
        for_each_member(object, |key, value| {
            self.separate();
            self.out.push('"');
            self.out.push_str(rename(key).unwrap_or_default());
            self.out.push_str(key);
            self.out.push_str("\":");
            push_compact(value, self.out);
        });
    }

    /// What stands before a field's value. Our names need no escapes.
    fn name(&mut self, name: &str) {
        self.separate();
        if self.format == LineFormat::JsonLines {
            self.out.push('"');
            self.out.push_str(name);
            self.out.push_str("\":");
        }
    }

    fn separate(&mut self) {
        if !self.is_empty {
            self.out.push(',');
        }
        self.is_empty = false;
    }
}

/// Appends an object between its brackets.
fn write_enclosed([open, close]: [&str; 2], write: impl FnOnce(&mut Line<'_>), out: &mut String) {
    out.push_str(open);
    write(&mut Line { format: LineFormat::JsonLines, out, is_empty: true });
    out.push_str(close);
}

/// Appends a cell: in quotes when it is empty or holds what separates cells and lines (RFC 4180, section 2).
fn push_cell(text: &str, out: &mut String) {
    let needs_quotes = text.is_empty() || text.contains([',', '"', '\n', '\r']);
    if !needs_quotes {
        out.push_str(text);
        return;
    }
    out.push('"');
    for (index, part) in text.split('"').enumerate() {
        if index > 0 {
            out.push_str("\"\"");
        }
        out.push_str(part);
    }
    out.push('"');
}
