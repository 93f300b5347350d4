//! Text tables for people: words to the left, numbers to the right with their thousands apart.

use std::io::{self, Write};

/// A cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Words, aligned to the left.
    Text(String),
    /// A number, aligned to the right.
    Number(i64),
    /// Nothing is known; shown as `-`, aligned to the right.
    Unknown,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Option<i64>> for Cell {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Unknown, Self::Number)
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            // A line break or a control character in a name would tear the table, or write to the terminal.
            Self::Text(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
            Self::Number(number) => with_thousands(*number),
            Self::Unknown => "-".into(),
        }
    }
}

/// A table in memory: one row for each partition or finding, so it stays small.
#[derive(Debug, Clone)]
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these column titles.
    #[must_use]
    pub fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Cells that are missing stay empty, cells beyond the titles are not shown.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Writes the titles and the rows, columns two spaces apart, without trailing spaces.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let texts: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect();
        let columns: Vec<(usize, bool)> =
            (0..self.titles.len()).map(|index| self.column(index, &texts)).collect();
        let titles = self.titles.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>();
        for line in std::iter::once(&titles).chain(&texts) {
            let mut text = String::new();
            for (cell, (width, is_right)) in line.iter().zip(&columns) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if *is_right { (&*padding, "") } else { ("", &*padding) };
                text.extend([before, cell, after, "  "]);
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    /// The width of a column in characters, and whether it is aligned to the right: no cell of it is a text.
    fn column(&self, index: usize, texts: &[Vec<String>]) -> (usize, bool) {
        let title_width = self.titles.get(index).map_or(0, |title| title.chars().count());
        let width = texts.iter().filter_map(|row| row.get(index)).map(|text| text.chars().count()).max();
        let mut cells = self.rows.iter().filter_map(|row| row.get(index)).peekable();
        let is_right = cells.peek().is_some() && cells.all(|cell| !matches!(cell, Cell::Text(_)));
        (title_width.max(width.unwrap_or(0)), is_right)
    }
}

/// `number` with a comma between each three digits.
#[must_use]
pub fn with_thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rows: Vec<Vec<Cell>>, expected: &str) {
        let mut table = Table::new(&["topic", "next"]);
        rows.into_iter().for_each(|row| table.push(row));
        let mut out = Vec::new();
        table.write_to(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn words_go_left_and_numbers_go_right() {
        check(vec![], "topic  next\n");
        check(
            vec![vec!["a".into(), 1.into()], vec!["bcdefgh".into(), 1_234_567.into()]],
            "topic         next\na                1\nbcdefgh  1,234,567\n",
        );
        check(
            vec![vec!["a".into(), Cell::Unknown], vec!["b".into(), 12.into()]],
            "topic  next\na         -\nb        12\n",
        );
    }

    #[test]
    fn a_name_can_not_write_to_the_terminal() {
        check(vec![vec!["a\u{1b}[2J\n".into(), 1.into()]], "topic   next\na?[2J?     1\n");
    }

    #[test]
    fn thousands_stand_apart() {
        let cases = [
            (0, "0"),
            (-1, "-1"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
            (i64::MIN, "-9,223,372,036,854,775,808"),
        ];
        for (number, expected) in cases {
            assert_eq!(with_thousands(number), expected);
        }
    }
}
