//! Where reports and words go. Standard output carries nothing but reports; words for people go to stderr.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::{
        args::Color,
        options::{JsonTo, Options},
    },
    fail_on::Watch,
    report::{
        model::Report,
        text::{TextOptions, render},
        write::{create, ignore_broken_pipe, write_json},
    },
};

/// The sinks of one run.
pub struct Output {
    json: Option<Json>,
    text: Option<TextOptions>,
    watch: Watch,
    quiet: bool,
    lines: bool,
    stdout_closed: bool,
}

enum Json {
    Stdout,
    File(File, std::path::PathBuf),
}

impl Output {
    /// Opens them, so that an unwritable file is known before anything is traced.
    pub fn open(options: &Options, color: Color) -> Result<Self> {
        let json = match &options.json {
            None => None,
            Some(JsonTo::Stdout) => Some(Json::Stdout),
            Some(JsonTo::File(path)) => {
                let file = create(path).with_context(|| {
                    format!(
                        "cannot write {}: name a file in a writable folder",
                        path.display()
                    )
                })?;
                Some(Json::File(file, path.clone()))
            }
        };
        let text = (!matches!(json, Some(Json::Stdout))).then(|| TextOptions {
            width: width(),
            color: is_coloured(color),
            top: options.top as usize,
            verbose: options.verbose,
        });
        Ok(Self {
            json,
            text,
            watch: Watch::new(options.fail_on.clone()),
            quiet: options.quiet,
            lines: options.interval.is_some(),
            stdout_closed: false,
        })
    }

    /// A line for people.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            // A closed stderr is no reason to stop.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// A condition of `--fail-on` held.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.watch.has_held()
    }

    /// A sign of life.
    pub fn progress(&self, line: &str) {
        self.say(line);
    }

    /// A report of an interval; false when nobody reads any more.
    pub fn interval(&mut self, report: &Report) -> Result<bool> {
        self.write(report)?;
        Ok(!self.stdout_closed)
    }

    /// The last report.
    pub fn last(&mut self, report: &Report) -> Result<()> {
        self.write(report)
    }

    /// Nobody reads standard output any more.
    #[must_use]
    pub fn reader_is_gone(&self) -> bool {
        if matches!(self.json, Some(Json::File(..))) {
            return false;
        }
        if self.stdout_closed {
            return true;
        }
        // A pipe whose reader left shows an error condition; asking costs nothing beside a tick.
        let mut poll = libc::pollfd {
            fd: io::stdout().as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: poll(2) on one initialised entry, without waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLERR != 0 }
    }

    fn write(&mut self, report: &Report) -> Result<()> {
        // Before anything can go wrong with the outputs: the exit status rests on it.
        let (held, unknown) = self.watch.report(report);
        // The text first: a full disk must not take it along.
        if let Some(options) = &self.text {
            let text = render(report, options);
            let mut stdout = io::stdout().lock();
            let result = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            drop(stdout);
            self.note_stdout(result)?;
        }
        match &mut self.json {
            Some(Json::Stdout) => {
                let result = write_json(report, &mut io::stdout().lock(), true);
                self.note_stdout(result)?;
            }
            Some(Json::File(file, path)) => {
                write_json(report, file, self.lines)
                    .and_then(|()| file.flush())
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            None => {}
        }
        for line in unknown {
            self.say(&format!("ctrace: {line}"));
        }
        for line in held {
            // Also with -q: it is why the status is 1.
            let _ = writeln!(io::stderr(), "ctrace: {line}");
        }
        Ok(())
    }

    fn note_stdout(&mut self, result: io::Result<()>) -> Result<()> {
        self.stdout_closed |= result
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        ignore_broken_pipe(result).context("cannot write to standard output")
    }
}

/// Whether to colour what goes to standard output.
pub fn is_coloured(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    }
}

/// Columns of the terminal, 100 without one.
pub fn width() -> usize {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills the struct, or fails.
    let result = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result == 0 && size.ws_col > 0 {
        usize::from(size.ws_col).clamp(60, 160)
    } else {
        100
    }
}
