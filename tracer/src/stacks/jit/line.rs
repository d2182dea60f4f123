//! Lines of a map, and what the names in them say.

use crate::stacks::symbols::Function;

/// A name is cut here.
const MAX_NAME: usize = 1024;
/// What V8 calls code that was compiled from a function of a script.
const SCRIPT: [&str; 5] = ["LazyCompile:", "Function:", "JS:", "Script:", "Eval:"];
/// V8's marks of how it was compiled: interpreted, baseline, optimised a little, and fully.
const TIERS: [char; 4] = ['~', '^', '+', '*'];

/// A piece of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) name: &'a [u8],
}

/// `START SIZE NAME`; with or without `0x`, as both are written. None for anything else.
pub(super) fn parse(line: &[u8]) -> Option<Piece<'_>> {
    let (start, rest) = hex(line.trim_ascii_start())?;
    let (size, rest) = hex(rest.trim_ascii_start())?;
    let name = rest.trim_ascii();
    let end = start.checked_add(size)?;
    (size > 0 && !name.is_empty()).then_some(Piece { start, end, name })
}

/// A number up to a blank, and what follows it.
fn hex(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text
        .strip_prefix(b"0x")
        .or_else(|| text.strip_prefix(b"0X"))
        .unwrap_or(text);
    let len = digits.iter().position(|&b| b == b' ' || b == b'\t')?;
    let (digits, rest) = digits.split_at_checked(len)?;
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let value = digits.iter().try_fold(0u64, |value, &digit| {
        let digit = (digit as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    });
    Some((value?, rest))
}

/// A function as its runtime names it, and its place where that is in the name too.
pub(super) fn function(name: &[u8]) -> Function {
    let text = String::from_utf8_lossy(name.get(..MAX_NAME).unwrap_or(name));
    let (name, file, line) = script(&text)
        .or_else(|| python(&text))
        .unwrap_or((&text, None, None));
    Function {
        name: name.into(),
        file: file.map(Into::into),
        line,
    }
}

type Parts<'a> = (&'a str, Option<&'a str>, Option<u32>);

/// `JS:*name path:line:column` of V8.
fn script(text: &str) -> Option<Parts<'_>> {
    let rest = SCRIPT.iter().find_map(|kind| text.strip_prefix(kind))?;
    let rest = rest.strip_prefix(TIERS).unwrap_or(rest);
    // A getter's name has a blank in it, and so may a path.
    let at = [" /", " file:", " node:"]
        .iter()
        .filter_map(|begin| rest.find(begin))
        .min()
        .or_else(|| rest.rfind(' '));
    let placed = at.and_then(|at| {
        let (path, line) = position(rest.get(at + 1..)?)?;
        Some((rest.get(..at)?, Some(path), Some(line)))
    });
    let (name, path, line) = placed.unwrap_or((rest, None, None));
    Some((if name.is_empty() { "(anonymous)" } else { name }, path, line))
}

/// `path:line:column`.
fn position(text: &str) -> Option<(&str, u32)> {
    let (rest, column) = text.rsplit_once(':')?;
    let (path, line) = rest.rsplit_once(':')?;
    column.parse::<u32>().ok()?;
    Some((path.strip_prefix("file://").unwrap_or(path), line.parse().ok()?))
}

/// `py::name:path` of CPython.
fn python(text: &str) -> Option<Parts<'_>> {
    let (name, path) = text.strip_prefix("py::")?.split_once(':')?;
    Some((name, Some(path).filter(|path| !path.is_empty()), None))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_as_runtimes_write_them() {
        let piece = |start, end, name| Some(Piece { start, end, name });
        let lines: [(&[u8], _); 11] = [
            (
                b"7f0010 20 JS:*work /a.js:1:2",
                piece(0x7f_0010, 0x7f_0030, &b"JS:*work /a.js:1:2"[..]),
            ),
            (
                b"0x00007f10 0x0000000000000020 int Shop.sell(int)\r",
                piece(0x7f10, 0x7f30, b"int Shop.sell(int)"),
            ),
            (b"  10  1  a b ", piece(0x10, 0x11, b"a b")),
            (b"10 0 empty", None),
            (b"10 20", None),
            (b"10 20 ", None),
            (b"xyz 20 name", None),
            (b"-10 20 name", None),
            (b"ffffffffffffffff 2 past the end", None),
            (b"11112222333344445 1 too long", None),
            (b"", None),
        ];
        for (line, wanted) in lines {
            assert_eq!(parse(line), wanted, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn names_as_runtimes_write_them() {
        let names = [
            (
                "JS:*waitForCache /srv/shop.js:12:22",
                "waitForCache",
                Some("/srv/shop.js"),
                Some(12),
            ),
            (
                "LazyCompile:~get status node:_http_client:40:7",
                "get status",
                Some("node:_http_client"),
                Some(40),
            ),
            (
                "JS:^ file:///srv/my shop.mjs:3:1",
                "(anonymous)",
                Some("/srv/my shop.mjs"),
                Some(3),
            ),
            (
                "Script:~ /srv/shop.js:1:1",
                "(anonymous)",
                Some("/srv/shop.js"),
                Some(1),
            ),
            ("JS:*plain", "plain", None, None),
            (
                "Builtin:ArrayPrototypeJoin",
                "Builtin:ArrayPrototypeJoin",
                None,
                None,
            ),
            (
                "py::Shop.sell:/srv/shop.py",
                "Shop.sell",
                Some("/srv/shop.py"),
                None,
            ),
            ("py::<module>:<string>", "<module>", Some("<string>"), None),
            (
                "void Locks.waitForCache()",
                "void Locks.waitForCache()",
                None,
                None,
            ),
        ];
        for (name, function_name, file, line) in names {
            let f = function(name.as_bytes());
            assert_eq!(
                (&*f.name, f.file.as_deref(), f.line),
                (function_name, file, line),
                "{name}"
            );
        }
        assert_eq!(function(&[b'x'; 5000]).name.len(), MAX_NAME);
    }

    proptest! {
        #[test]
        fn any_line(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(piece) = parse(&line) {
                prop_assert!(piece.start < piece.end);
                function(piece.name);
            }
        }

        #[test]
        fn any_name(name in "(JS:|py::|Script:)?[*~]?.{0,40}( /| file:| node:|:)?.{0,20}(:[0-9]{1,12}){0,3}") {
            function(name.as_bytes());
        }
    }
}
