//! What is done with saved reports: shown again, and compared.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::{
    args::{Color, DiffArgs, ReportArgs},
    complain,
    options::collectors,
    print,
};
use crate::{
    diff::{self, Only, Settings, read},
    fail_on::{On, Watch, parse},
    report::{
        text::{TextOptions, render, render_diff},
        write::{create, ignore_broken_pipe, write_json},
    },
    session::output::{is_coloured, width},
};

/// `ctrace report FILE`.
pub(super) fn report(args: &ReportArgs) -> Result<ExitCode> {
    let mut watch = Watch::new(parse(&args.fail_on, On::Report)?);
    let mut lines = (Vec::new(), Vec::new());
    let report = read::read_last(&args.file, |report| {
        let (mut held, mut unknown) = watch.report(report);
        lines.0.append(&mut held);
        lines.1.append(&mut unknown);
    })?;
    if let Some(to) = &args.json {
        json(&report, to)?;
    }
    // Nothing else goes to standard output with the JSON; beside a file, the text does.
    if args.json.as_ref().is_none_or(|to| to.as_os_str() != "-") {
        let options = options(args.top.unwrap_or(report.options.top), args.color, args.verbose);
        print(render(&report, &options).trim_end())?;
    }
    Ok(end(&watch, lines))
}

/// `ctrace diff BEFORE AFTER`.
pub(super) fn diff(args: &DiffArgs) -> Result<ExitCode> {
    let mut watch = Watch::new(parse(&args.fail_on, On::Diff)?);
    let settings = Settings {
        margin: percent("margin", &args.margin)?,
        noise: percent("noise", &args.noise)?,
        load: args.load.as_deref().map(load).transpose()?,
        only: args.only.as_deref().map(only).transpose()?,
        ..Settings::default()
    };
    let (before, after) = (read::read(&args.before)?, read::read(&args.after)?);
    let diff = diff::diff(&before, &after, &settings);
    if let Some(to) = &args.json {
        json(&diff, to)?;
    }
    if args.json.as_ref().is_none_or(|to| to.as_os_str() != "-") {
        print(render_diff(&diff, &options(args.top, args.color, args.verbose)).trim_end())?;
    }
    let lines = watch.diff(&diff);
    Ok(end(&watch, lines))
}

fn options(top: u32, color: Color, verbose: bool) -> TextOptions {
    TextOptions {
        width: width(),
        color: is_coloured(color),
        top: top.max(1) as usize,
        verbose,
    }
}

/// Says which conditions held, and which could not be told.
fn end(watch: &Watch, (held, unknown): (Vec<String>, Vec<String>)) -> ExitCode {
    for line in unknown.iter().chain(&held) {
        complain(line);
    }
    if watch.has_held() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn json<T: Serialize>(document: &T, to: &Path) -> Result<()> {
    if to.as_os_str() == "-" {
        let mut stdout = io::stdout().lock();
        let written = write_json(document, &mut stdout, false).and_then(|()| stdout.flush());
        return ignore_broken_pipe(written).context("cannot write to standard output");
    }
    let shown = to.to_string_lossy().escape_debug().to_string();
    let mut file =
        create(to).with_context(|| format!("cannot write {shown}: name a file in a writable folder"))?;
    write_json(document, &mut file, false).with_context(|| format!("cannot write {shown}"))
}

/// `20%` or `20`, as a part.
fn percent(name: &str, text: &str) -> Result<f64> {
    let number = text.trim().trim_end_matches('%').trim_end();
    match number.parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent / 100.0),
        _ => bail!(
            "--{name} wants percents such as 20%, not `{}`",
            text.escape_debug()
        ),
    }
}

/// `1200,2400`.
fn load(text: &str) -> Result<[f64; 2]> {
    let number = |text: &str| {
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|load| (1.0..=1e18).contains(load))
    };
    match text.split_once(',').map(|(one, two)| (number(one), number(two))) {
        Some((Some(one), Some(two))) => Ok([one, two]),
        _ => bail!(
            "--load wants what was done in either run, such as 12000,13500, not `{}`",
            text.escape_debug()
        ),
    }
}

fn only(list: &str) -> Result<Only> {
    let chosen = collectors(list)?;
    let only = Only {
        locks: chosen.locks,
        fds: chosen.fds,
        sched: chosen.sched,
        io: chosen.io,
        go: chosen.go,
    };
    ensure!(
        only != Only::default(),
        "--only wants at least one of locks, fds, sched, io, go"
    );
    Ok(only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_and_percents_are_checked() {
        assert_eq!(load("12, 24").unwrap().map(|load| load as u64), [12, 24]);
        for wrong in ["", "1", "1,", "0,1", "1,2,3", "a,b", "inf,1", "NaN,1", "-1,1"] {
            load(wrong).unwrap_err();
        }
        assert!((percent("margin", "20%").unwrap() - 0.2).abs() < 1e-12);
        for wrong in ["", "%", "-1", "x", "NaN", "1e9"] {
            percent("margin", wrong).unwrap_err();
        }
        assert!(only("locks").unwrap().locks);
        only("lock").unwrap_err();
    }
}
