//! Resource limits of another process: `/proc/PID/limits` (`proc_pid_limits(5)`).

use std::io::{self, Read as _};

/// Most bytes read: the file has 16 lines of fixed width, about 1.3 KB.
const MAX_BYTES: u64 = 16 << 10;

/// `RLIMIT_NOFILE`: one more than the highest descriptor number that can be given out. `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nofile {
    /// The limit in force.
    pub soft: Option<u64>,
    /// How far the process may raise it by itself.
    pub hard: Option<u64>,
}

/// Limit on open descriptors of `pid`.
pub fn nofile(pid: u32) -> io::Result<Nofile> {
    let mut text = String::new();
    std::fs::File::open(format!("/proc/{pid}/limits"))?
        .take(MAX_BYTES)
        .read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no line `Max open files`"))
}

fn parse(text: &str) -> Option<Nofile> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_ascii_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Nofile {
        soft: next()?,
        hard: next()?,
    })
}

/// Lets us have as many descriptors open as we may: one for each file of the targets' code, and for each child that is followed.
pub fn raise_nofile() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) fills the struct, setrlimit(2) reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_read() {
        let text = "Limit   Soft Limit  Hard Limit  Units\nMax processes 1 2 processes\n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(
            parse(text),
            Some(Nofile {
                soft: Some(1024),
                hard: Some(524_288)
            })
        );
        let text = "Max open files            1024                 unlimited            files\n";
        assert_eq!(
            parse(text),
            Some(Nofile {
                soft: Some(1024),
                hard: None
            })
        );
    }

    #[test]
    fn what_is_not_a_limit_is_none() {
        for text in [
            "",
            "Max open files",
            "Max open files 1",
            "Max open files x y",
            "Max open files -1 3",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn own_limit_is_the_kernels() {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is an `rlimit` that lives through the call.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        assert_eq!(nofile(std::process::id()).unwrap().soft, Some(limit.rlim_cur));
    }
}
