//! Text of the target's choice, made harmless.

pub(super) use crate::report::frames::cut;

const HEX: [&str; 16] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f",
];

/// `text` with everything that is not a plain printable character written out: `\x1b`, `\u{202e}`; a backslash is
/// doubled, so that what was escaped can be told from what looked so before.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' => out.push(c),
            '\0'..='\x1f' | '\x7f' => out.extend([r"\x", HEX[c as usize >> 4], HEX[c as usize & 15]]),
            char::REPLACEMENT_CHARACTER => out.extend(c.escape_unicode()),
            // Escapes controls, formats (bidi among them), private use, unassigned, and combining marks.
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

/// At most `max` characters of prose: its beginning and `…`.
pub(super) fn head(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// [`clean`] and [`cut`].
pub(super) fn name(text: &str, max: usize) -> String {
    cut(&clean(text), max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(clean("a\u{1b}[31m\n\u{7f}"), r"a\x1b[31m\x0a\x7f");
        assert_eq!(
            clean("\u{9b}2J\u{202e}\u{2066}\u{200b}\u{feff}"),
            r"\u{9b}2J\u{202e}\u{2066}\u{200b}\u{feff}"
        );
        assert_eq!(clean("\u{fffd}\u{e000}a\u{301}"), r"\u{fffd}\u{e000}a\u{301}");
        assert_eq!(clean(r#"é "日本" it's \x1b"#), r#"é "日本" it's \\x1b"#);
    }

    #[test]
    fn both_ends_are_kept() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("std::vector<int>::push_back", 11), "std::…_back");
        assert_eq!(cut("ab", 1), "…");
        assert_eq!(cut("ab", 0), "…");
        assert_eq!([head("prose", 5), head("prose", 4)], ["prose", "pro…"]);
    }
}
