//! Writing a report out: the JSON document, the file, and the pipe whose reader went away.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;

/// Writes `report` as one JSON document and a newline: on a single line (JSON Lines, with `-i`) or indented.
///
/// Names in it are the target's choice and the reader may be a terminal: what is not printable is written `\uXXXX`,
/// also where JSON would not ask for it (C1 controls, bidi controls).
pub fn write_json<T: Serialize>(report: &T, to: &mut dyn Write, one_line: bool) -> io::Result<()> {
    let text = if one_line {
        serde_json::to_string(report)?
    } else {
        serde_json::to_string_pretty(report)?
    };
    let mut rest = text.as_str();
    while let Some(at) = rest.find(is_unprintable) {
        let (plain, from) = rest.split_at(at);
        to.write_all(plain.as_bytes())?;
        let mut chars = from.chars();
        for unit in chars
            .next()
            .iter()
            .flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec())
        {
            write!(to, "\\u{unit:04x}")?;
        }
        rest = chars.as_str();
    }
    to.write_all(rest.as_bytes())?;
    to.write_all(b"\n")?;
    to.flush()
}

/// Beyond what JSON itself escapes. Outside of strings a document is ASCII, so each of these is within one.
fn is_unprintable(c: char) -> bool {
    c == '\u{7f}' || (!c.is_ascii() && c.escape_debug().len() > 1)
}

/// Opens `path` to be written from its beginning.
///
/// A report names files and peers of somebody's process and is written by a privileged one: so a new file is its
/// owner's alone (mode 0600), and a symbolic link in the last component is refused (`ELOOP`), as it could point to
/// any file of the host. A file that exists keeps its mode and owner; a FIFO or a terminal works.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
}

/// Takes a closed pipe for success: `ctrace … | head` has what it wanted.
pub fn ignore_broken_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::report::{model::Report, sample};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn one_line_is_one_line() {
        let report = sample::contended();
        let (mut line, mut indented) = (Vec::new(), Vec::new());
        write_json(&report, &mut line, true).unwrap();
        write_json(&report, &mut indented, false).unwrap();
        assert_eq!(line.split(|&byte| byte == b'\n').count(), 2);
        assert!(indented.len() > line.len());
        for text in [line, indented] {
            assert_eq!(serde_json::from_slice::<Report>(&text).unwrap(), report);
        }
    }

    #[test]
    fn terminals_are_not_controlled() {
        let mut report = sample::hostile();
        report.host.hostname.push_str("\u{7f}\u{e0001}é日");
        let mut written = Vec::new();
        write_json(&report, &mut written, true).unwrap();
        let text = String::from_utf8(written).unwrap();
        assert!(
            text.contains(r"\u009b31m")
                && text.contains(r"\u202e")
                && text.contains(r"\u007f\udb40\udc01é日")
        );
        assert_eq!(text.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn new_files_are_private_and_old_ones_keep_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        create(&new).unwrap();
        assert_eq!(mode(&new), 0o600);
        fs::write(&old, "before").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
        create(&old).unwrap().write_all(b"x").unwrap();
        assert_eq!((mode(&old), fs::read(&old).unwrap()), (0o644, b"x".to_vec()));
    }

    #[test]
    fn links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "kept").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(create(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn a_closed_pipe_is_success() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        let result = write_json(&sample::contended(), &mut writer, false);
        assert_eq!(result.as_ref().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        ignore_broken_pipe(result).unwrap();
        ignore_broken_pipe(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
    }
}
