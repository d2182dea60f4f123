//! Tracepoint ids are read from tracefs, which may not be mounted.

use std::{fs, fs::File, io, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result};

const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Where tracefs is mounted, if it is.
#[must_use]
pub fn find() -> Option<&'static Path> {
    PLACES
        .iter()
        .map(Path::new)
        .find(|place| place.join("events/sched").is_dir())
}

/// Runs `work` with tracefs in reach. Where it is not mounted it is, in a mount namespace of our own that is left again:
/// the host sees no change, and nothing remains if we die. Must be called while the process has one thread.
pub fn with_tracefs<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    if find().is_some() {
        return work();
    }
    let home = File::open("/proc/self/ns/mnt").context("cannot open our own mount namespace")?;
    mount_privately().context(
        "tracefs is not mounted and cannot be: run `mount -t tracefs tracefs /sys/kernel/tracing`, or leave descriptors out with --only locks,sched,io",
    )?;
    let result = work();
    // SAFETY: setns(2) on a descriptor that we own.
    if unsafe { libc::setns(home.as_raw_fd(), libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot return to the mount namespace");
    }
    result
}

fn mount_privately() -> io::Result<()> {
    let mount =
        |source: &std::ffi::CStr, target: &std::ffi::CStr, kind: &std::ffi::CStr, flags: libc::c_ulong| {
            // SAFETY: mount(2) with valid strings and no data.
            match unsafe {
                libc::mount(
                    source.as_ptr(),
                    target.as_ptr(),
                    kind.as_ptr(),
                    flags,
                    std::ptr::null(),
                )
            } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
    // SAFETY: unshare(2) has no memory effects.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"tracefs", c"/sys/kernel/tracing", c"tracefs", 0)
}

/// Offset of `field` in the record of a classic tracepoint, from its `format` file.
#[must_use]
pub fn field_offset(category: &str, name: &str, field: &str) -> Option<u32> {
    let format = fs::read_to_string(find()?.join("events").join(category).join(name).join("format")).ok()?;
    parse_field(&format, field)
}

fn parse_field(format: &str, field: &str) -> Option<u32> {
    format
        .lines()
        .filter_map(|line| line.trim().strip_prefix("field:"))
        .find_map(|line| {
            let mut parts = line.split(';').map(str::trim);
            let declaration = parts.next()?;
            let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
            if name != field {
                return None;
            }
            parts.find_map(|part| part.strip_prefix("offset:"))?.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let format = "format:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\tfield:void * req;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:u8 opcode;\toffset:32;\tsize:1;\n";
        assert_eq!(parse_field(format, "req"), Some(16));
        assert_eq!(parse_field(format, "opcode"), Some(32));
        assert_eq!(parse_field(format, "code"), None);
    }
}
