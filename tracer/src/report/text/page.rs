//! Lines, wrapped prose and tables of a given width, with or without colour.

use super::escape::{cut, head};

/// Narrower than this nothing can be laid out.
const NARROWEST: usize = 60;
/// Columns that may shrink keep this much.
const LEAST_CELL: usize = 10;

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Bold,
    Red,
    Yellow,
    Plain,
}

/// Width and colour.
pub(super) struct Page {
    pub(super) width: usize,
    color: bool,
}

/// A column of a table.
#[derive(Clone, Copy)]
pub(super) enum Column {
    /// Text; shrinks when the table is too wide.
    Text(&'static str),
    /// Words from a fixed list.
    Word(&'static str),
    /// Flush right.
    Number(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Word(title) | Self::Number(title) => title,
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// `cell` in at most `width` columns: of a chain of callers, whole names go first.
fn fit(cell: &str, width: usize) -> String {
    if length(cell) > width
        && let Some((first, others)) = cell.split_once(" ← ")
    {
        let last = others.rsplit(" ← ").next().unwrap_or(others);
        let shorter = [format!("{first} ← … ← {last}"), format!("{first} ← …")];
        if let Some(fitting) = shorter.into_iter().find(|chain| length(chain) <= width) {
            return fitting;
        }
    }
    cut(cell, width)
}

impl Page {
    pub(super) fn new(width: usize, color: bool) -> Self {
        Self {
            width: width.max(NARROWEST),
            color,
        }
    }

    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Bold => "1",
            Tone::Red => "1;31",
            Tone::Yellow => "33",
            Tone::Plain => return text.to_owned(),
        };
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn heading(&self, text: &str) -> String {
        self.paint(Tone::Bold, &cut(text, self.width))
    }

    /// `text` (without colour) cut to the width.
    pub(super) fn line(&self, indent: usize, text: &str) -> String {
        format!("{:indent$}{}", "", cut(text, self.width - indent))
    }

    /// Prose (without colour) of which the beginning matters most, cut to the width.
    pub(super) fn prose(&self, indent: usize, text: &str) -> String {
        format!("{:indent$}{}", "", head(text, self.width - indent))
    }

    /// `text` (without colour) broken at spaces behind a label that takes `indent` columns.
    pub(super) fn labelled(&self, indent: usize, label: &str, text: &str) -> Vec<String> {
        let mut lines = self.wrap(indent, text);
        if let Some(first) = lines.first_mut() {
            first.replace_range(..indent, &format!("{label:indent$}"));
        }
        lines
    }

    /// `text` (without colour) broken at spaces.
    pub(super) fn wrap(&self, indent: usize, text: &str) -> Vec<String> {
        let room = self.width - indent;
        let mut lines: Vec<String> = Vec::new();
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let word = cut(word, room);
            match lines.last_mut() {
                Some(line) if length(line) + 1 + length(&word) <= room => {
                    line.push(' ');
                    line.push_str(&word);
                }
                _ => lines.push(word),
            }
        }
        lines
            .into_iter()
            .map(|line| format!("{:indent$}{line}", ""))
            .collect()
    }

    /// A line for the titles and one for each row; the first column's title is the table's heading. A column of
    /// empty cells is left out.
    pub(super) fn table(&self, heading: &str, columns: &[Column], rows: &[Vec<String>]) -> Vec<String> {
        let filled = |at: usize| {
            at == 0
                || rows
                    .iter()
                    .any(|row| row.get(at).is_some_and(|cell| !cell.is_empty()))
        };
        let kept: Vec<usize> = (0..columns.len()).filter(|&at| filled(at)).collect();
        if kept.len() < columns.len() {
            let columns: Vec<Column> = kept.iter().map(|&at| columns[at]).collect();
            let keep = |row: &Vec<String>| kept.iter().filter_map(|&at| row.get(at).cloned()).collect();
            return self.full_table(heading, &columns, &rows.iter().map(keep).collect::<Vec<_>>());
        }
        self.full_table(heading, columns, rows)
    }

    fn full_table(&self, heading: &str, columns: &[Column], rows: &[Vec<String>]) -> Vec<String> {
        let mut widths: Vec<usize> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| length(cell));
                cells.max().unwrap_or(0).max(length(column.title()))
            })
            .collect();
        // The heading may reach over the first column's rows, which are indented.
        if let Some(first) = widths.first_mut() {
            *first = (*first).max(length(heading).saturating_sub(2));
        }
        self.shrink(columns, &mut widths, length(heading).saturating_sub(2));
        let lay = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((cell, column), &width) in cells.zip(columns).zip(&widths) {
                let cell = fit(cell, width);
                let gap = width - length(&cell);
                if let Column::Number(_) = column {
                    line.push_str(&" ".repeat(gap));
                    line.push_str(&cell);
                } else {
                    line.push_str(&cell);
                    line.push_str(&" ".repeat(gap));
                }
                line.push_str("  ");
            }
            line.trim_end().to_owned()
        };
        let titles = lay(&mut std::iter::once("").chain(columns.iter().skip(1).map(|column| column.title())));
        let titles: String = titles.chars().skip(length(heading).saturating_sub(2)).collect();
        let mut lines = vec![self.paint(Tone::Bold, &format!("{heading}{titles}"))];
        lines.extend(
            rows.iter()
                .map(|row| format!("  {}", lay(&mut row.iter().map(String::as_str)))),
        );
        lines
    }

    /// Takes what is too much from the widest text columns.
    fn shrink(&self, columns: &[Column], widths: &mut [usize], heading: usize) {
        let room = self.width - 2;
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * (widths.len().saturating_sub(1));
        let least = |at: usize| {
            if at == 0 {
                heading.max(LEAST_CELL)
            } else {
                LEAST_CELL
            }
        };
        let is_text = |at: usize| matches!(columns[at], Column::Text(_));
        while total(widths) > room {
            let widest = (0..widths.len())
                .filter(|&at| is_text(at) && widths[at] > least(at))
                .max_by_key(|&at| widths[at]);
            let Some(at) = widest else { break };
            widths[at] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_and_align() {
        let columns = [
            Column::Text(""),
            Column::Number("waits"),
            Column::Word("kind"),
            Column::Text("where"),
        ];
        let row =
            |name: &str, waits: &str, at: &str| vec![name.into(), waits.into(), "mutex".into(), at.into()];
        let rows = [
            row("cache", "7", "a"),
            row(&"n".repeat(50), "12,345", &"w".repeat(50)),
        ];
        let lines = Page::new(60, false).table("Locks", &columns, &rows);
        insta::assert_snapshot!(lines.join("\n"), @"
        Locks                     waits  kind   where
          cache                       7  mutex  a
          nnnnnnnnnn…nnnnnnnnnn  12,345  mutex  wwwwwwwwww…wwwwwwwww
        ");
        assert!(lines.iter().all(|line| line.chars().count() <= 60));
    }

    #[test]
    fn chains_lose_whole_names() {
        let chain = "dial ← Db::connect ← retry_once";
        let shown = [31, 30, 21, 20, 8, 7].map(|width| fit(chain, width));
        assert_eq!(
            shown,
            [
                chain,
                "dial ← … ← retry_once",
                "dial ← … ← retry_once",
                "dial ← …",
                "dial ← …",
                "dia…nce"
            ]
        );
    }

    #[test]
    fn prose_wraps_and_colour_is_asked_for() {
        let page = Page::new(60, true);
        let lines = page.wrap(4, &"word ".repeat(30));
        assert!(
            lines.len() > 2
                && lines
                    .iter()
                    .all(|line| line.starts_with("    word") && line.len() <= 60)
        );
        assert_eq!(page.paint(Tone::Red, "HIGH"), "\x1b[1;31mHIGH\x1b[0m");
        assert_eq!(Page::new(60, false).paint(Tone::Red, "HIGH"), "HIGH");
    }
}
