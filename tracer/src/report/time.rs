//! Points in time as text.

use std::time::SystemTime;

/// `at` as RFC 3339 in UTC with milliseconds: `2026-01-31T23:59:59.123Z`.
///
/// `None` past the year 9999 or before 1970, which only a clock that is badly wrong shows.
#[must_use]
pub fn rfc3339(at: SystemTime) -> Option<String> {
    use std::fmt::Write as _;
    let mut text = String::new();
    // The formatter panics before the epoch and fails past the year 9999.
    at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    write!(text, "{}", humantime::format_rfc3339_millis(at)).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn known_times() {
        let at = |ms| rfc3339(UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(at(951_782_400_123).as_deref(), Some("2000-02-29T00:00:00.123Z"));
        assert_eq!(at(1_767_582_000_007).as_deref(), Some("2026-01-05T03:00:00.007Z"));
        assert_eq!(at(253_402_300_800_000), None);
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
