//! Counting tests from libtest's output as it streams by.
//!
//! libtest knows passed, failed and ignored. A test that cannot run on this machine passes, having printed one line
//! `SKIP: reason`; such a line is counted here and taken off the passed. `--show-output` makes libtest print what
//! passing tests wrote (under `successes:`); without capturing the line appears while the test runs.

use std::ops::AddAssign;

/// What became of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ran and held.
    pub(crate) passed: u64,
    /// Ran and broke, or never came to their result.
    pub(crate) failed: u64,
    /// Ignored, or could not run here.
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Lines kept of what one failed test said, from its panic on.
const LINES_OF_A_FAILURE: usize = 12;

/// What test binaries said in all.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How many passed and did not.
    pub(crate) tally: Tally,
    /// Of each failed test its name, and what it said from its panic on.
    pub(crate) failures: Vec<String>,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.tally += other.tally;
        self.failures.extend(other.failures);
    }
}

/// Reads the lines of one or more test binaries in turn.
#[derive(Default)]
pub(crate) struct Reader {
    tally: Tally,
    /// Of each failed test its name and last words.
    told: Vec<String>,
    /// Lines of the failed test at hand yet to be kept; none before it panicked.
    wanted: Option<usize>,
    /// `SKIP:` lines since the last `running N tests`.
    skips: u64,
    /// Inside the `failures:` part, where a printed `SKIP:` belongs to a failed test.
    failures: bool,
    /// A binary announced its tests and has not given its result.
    open: bool,
}

impl Reader {
    /// Takes one line without its end.
    pub(crate) fn line(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.close();
            (self.skips, self.failures, self.open) = (0, false, true);
        } else if line == "failures:" || line == "successes:" {
            (self.failures, self.wanted) = (line == "failures:", None);
        } else if self.failures && line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.told.push(line[5..line.len() - 12].to_owned());
            self.wanted = None;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.result(counts);
        } else if !self.failures && self.open && after_name(line).starts_with("SKIP: ") {
            self.skips += 1;
        } else if self.failures {
            self.last_words(line);
        }
    }

    /// Keeps what a failed test said from its panic on.
    fn last_words(&mut self, line: &str) {
        if self.wanted.is_none() && line.starts_with("thread '") && line.contains(" panicked at ") {
            self.wanted = Some(LINES_OF_A_FAILURE);
        }
        if let (Some(told), Some(left @ 1..)) = (self.told.last_mut(), &mut self.wanted) {
            *told += "\n    ";
            *told += line;
            *left -= 1;
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn result(&mut self, counts: &str) {
        let count = |word: &str| {
            let mut words = counts.split([' ', ';']).filter(|word| !word.is_empty());
            let mut last = "";
            words.find_map(|next| {
                (std::mem::replace(&mut last, next).parse().ok()).filter(|_: &u64| next == word)
            })
        };
        let passed: u64 = count("passed").unwrap_or(0);
        let skips = self.skips.min(passed);
        self.tally += Tally {
            passed: passed - skips,
            failed: count("failed").unwrap_or(0),
            skipped: count("ignored").unwrap_or(0) + skips,
        };
        self.open = false;
    }

    /// A binary that died in mid-run, or was stopped, is one failure.
    fn close(&mut self) {
        self.tally.failed += u64::from(std::mem::take(&mut self.open));
    }

    /// The sum. `success` is the exit status of what ran the binaries: when it failed without a failed test (it did
    /// not compile), that is one failure too.
    pub(crate) fn finish(mut self, success: bool) -> Outcome {
        self.close();
        self.tally.failed += u64::from(!success && self.tally.failed == 0);
        Outcome {
            tally: self.tally,
            failures: self.told,
        }
    }
}

/// Without capturing, a test's first line follows its name: `test name ... SKIP: reason`.
fn after_name(line: &str) -> &str {
    match line
        .strip_prefix("test ")
        .and_then(|rest| rest.split_once(" ... "))
    {
        Some((_name, rest)) => rest,
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> Tally {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish(success).tally
    }

    #[test]
    fn a_failure_keeps_its_last_words() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\nnoise\n\
                    thread 'a' (7) panicked at a.rs:1:2:\nassertion failed\n\n---- b stdout ----\nsilent\n\n\
                    failures:\n    a\n    b\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; \
                    0 filtered out; finished in 0.10s\n";
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        let outcome = reader.finish(false);
        assert_eq!(outcome.tally.failed, 2);
        let told = "a\n    thread 'a' (7) panicked at a.rs:1:2:\n    assertion failed\n    ";
        assert_eq!(outcome.failures, [told, "b"]);
    }

    #[test]
    fn several_binaries_add_up() {
        let text = "\nrunning 2 tests\ntest a ... ok\ntest b ... ignored\n\ntest result: ok. 1 passed; 0 failed; \
                    1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\nrunning 1 test\ntest c ... ok\n\n\
                    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n";
        assert_eq!(
            read(text, true),
            Tally {
                passed: 2,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn skips_under_successes_are_not_passed() {
        let text = "running 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\n\nsuccesses:\n\n\
                    ---- a stdout ----\nSKIP: no javac\n\n\nsuccesses:\n    a\n    b\n\nfailures:\n\n---- c stdout ----\n\
                    SKIP: not here\nthread 'c' panicked\n\n\nfailures:\n    c\n\ntest result: FAILED. 2 passed; \
                    1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        assert_eq!(
            read(text, false),
            Tally {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
    }

    #[test]
    fn skips_without_capturing_are_seen() {
        let text = "running 2 tests\ntest a ... SKIP: not root\nok\ntest b ... noise\nSKIP: lockdown\nok\n\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n";
        assert_eq!(
            read(text, true),
            Tally {
                passed: 0,
                failed: 0,
                skipped: 2
            }
        );
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        assert_eq!(
            read("running 2 tests\ntest a ... ok\n", false),
            Tally {
                passed: 0,
                failed: 1,
                skipped: 0
            }
        );
    }

    #[test]
    fn what_does_not_compile_is_a_failure() {
        assert_eq!(
            read("", false),
            Tally {
                passed: 0,
                failed: 1,
                skipped: 0
            }
        );
    }
}
