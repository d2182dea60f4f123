//! Saved reports, which are as hostile as what they were made of: bounded, and refused in one line.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::report::model::{Report, SCHEMA};

/// Largest file that is read whole.
const BYTES_MAX: u64 = 256 << 20;
/// Largest file of which the last report is read.
const LAST_BYTES_MAX: u64 = 1 << 30;
/// Reports of one file, at most.
const DOCUMENTS_MAX: usize = 100_000;

/// The reports of one run.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The file.
    pub path: PathBuf,
    /// At least one, in the order of the file.
    pub reports: Vec<Report>,
}

/// Tells a report from another document.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    schema: Option<&'a str>,
}

/// Which reports of a file are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    All,
    Last,
}

/// Reads a JSON report, or lines of them.
pub fn read(path: &Path) -> Result<Saved> {
    Ok(Saved {
        path: path.to_owned(),
        reports: read_file(path, Keep::All, BYTES_MAX, &mut |_| {})?,
    })
}

/// Reads the last report of a file; `each` sees them all.
pub fn read_last(path: &Path, mut each: impl FnMut(&Report)) -> Result<Report> {
    let last = read_file(path, Keep::Last, LAST_BYTES_MAX, &mut each)?.pop();
    last.context("it has no report")
}

fn read_file(path: &Path, keep: Keep, most: u64, each: &mut dyn FnMut(&Report)) -> Result<Vec<Report>> {
    let shown = path.to_string_lossy().escape_debug().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        bytes.len() as u64 <= most,
        "{shown} is larger than {} MiB: name a file that `ctrace --json` wrote, with fewer intervals",
        most >> 20
    );
    parse(&bytes, keep, each).with_context(|| {
        format!("{shown} is no report of ctrace: write one with `ctrace --pid N --json FILE`")
    })
}

fn parse(bytes: &[u8], keep: Keep, each: &mut dyn FnMut(&Report)) -> Result<Vec<Report>> {
    ensure!(!bytes.iter().all(u8::is_ascii_whitespace), "it is empty");
    for (at, head) in serde_json::Deserializer::from_slice(bytes)
        .into_iter::<Head<'_>>()
        .enumerate()
    {
        let head = head.map_err(short)?;
        match head.schema {
            Some(SCHEMA) => {}
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                bail!("its schema is `{}`, not `{SCHEMA}`", other.escape_debug());
            }
            None => bail!("it has no schema, which should be `{SCHEMA}`"),
        }
        ensure!(at < DOCUMENTS_MAX, "it has more than {DOCUMENTS_MAX} reports");
    }
    let mut reports = Vec::new();
    for report in serde_json::Deserializer::from_slice(bytes).into_iter::<Report>() {
        let report = report.map_err(short)?;
        each(&report);
        if keep == Keep::Last {
            reports.clear();
        }
        reports.push(report);
    }
    Ok(reports)
}

/// An error of the parser, which may quote the file.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn short(error: serde_json::Error) -> anyhow::Error {
    let text: String = error.to_string().chars().take(160).collect();
    let cut = if error.is_eof() { "it is cut short: " } else { "" };
    anyhow::anyhow!("{cut}{}", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{
        sample,
        text::{TextOptions, render},
        write::write_json,
    };

    fn saved(one_line: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_json(&sample::contended(), &mut bytes, one_line).unwrap();
        bytes
    }

    fn whole(bytes: &[u8]) -> Result<Vec<Report>> {
        parse(bytes, Keep::All, &mut |_| {})
    }

    #[test]
    fn a_report_and_lines_of_them_are_read() {
        assert_eq!(whole(&saved(false)).unwrap(), [sample::contended()]);
        let lines = [saved(true), saved(true)].concat();
        assert_eq!(whole(&lines).unwrap().len(), 2);
    }

    #[test]
    fn anything_else_is_refused_in_a_line() {
        let document = saved(true);
        let cases: [(&[u8], &str); 9] = [
            (b"", "empty"),
            (b" \n", "empty"),
            (b"{", "cut short"),
            (b"\x7fELF\x02\x01", "expected value"),
            (b"{}", "no schema"),
            (br#"{"schema": "ctrace.report/2"}"#, "ctrace.report/2"),
            (br#"{"schema": [[1], 2]}"#, "invalid type"),
            (br#"{"schema": "ctrace.report/1"}"#, "missing field"),
            (&document[..document.len() / 2], "cut short"),
        ];
        for (bytes, says) in cases {
            let error = format!("{:#}", whole(bytes).unwrap_err());
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
        let deep = vec![b'['; 100_000];
        whole(&deep).unwrap_err();
        assert!(read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_saved_report_is_shown_as_the_live_one() {
        let folder = tempfile::tempdir().unwrap();
        for (name, report) in sample::all() {
            let path = folder.path().join(name);
            write_json(&report, &mut File::create(&path).unwrap(), false).unwrap();
            let mut seen = 0;
            let saved = read_last(&path, |_| seen += 1).unwrap();
            let options = TextOptions {
                width: 100,
                color: true,
                top: 10,
                verbose: true,
            };
            assert_eq!(render(&saved, &options), render(&report, &options), "{name}");
            assert_eq!((seen, read(&path).unwrap().reports), (1, vec![report]));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damage_is_survived(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = saved(true);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = whole(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = whole(&bytes);
        }
    }
}
