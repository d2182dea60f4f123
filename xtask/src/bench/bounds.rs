//! The bounds that ctrace is built to.

use super::{outcome::Limit, row::Pair, stats::get};

/// A figure of an "on" window.
pub(super) type Figure = fn(&Pair) -> f64;

/// A bound of a ratio, or of a difference, to the windows beside it.
pub(super) struct Bound {
    pub(super) load: &'static str,
    pub(super) row: &'static str,
    pub(super) what: &'static str,
    pub(super) figure: Figure,
    /// The figure when a tracer costs nothing.
    pub(super) nothing: f64,
    pub(super) limit: Limit,
    pub(super) digits: usize,
}

const fn cpu(load: &'static str, row: &'static str, limit: f64) -> Bound {
    Bound {
        load,
        row,
        what: "CPU per operation",
        figure: Pair::cpu,
        nothing: 1.0,
        limit: Limit::AtMost(limit),
        digits: 3,
    }
}

/// Of nanoseconds that an operation takes more.
pub(super) const fn added(
    load: &'static str,
    row: &'static str,
    what: &'static str,
    limit: f64,
    digits: usize,
) -> Bound {
    Bound {
        load,
        row,
        what,
        figure: Pair::added_ns,
        nothing: 0.0,
        limit: Limit::AtMost(limit),
        digits,
    }
}

pub(super) const BOUNDS: [Bound; 8] = [
    Bound {
        what: "throughput",
        figure: Pair::throughput,
        limit: Limit::AtLeast(0.95),
        ..cpu("hot", "ctrace locks", 0.0)
    },
    cpu("hot", "ctrace locks", 1.05),
    cpu("hot", ALL, 1.10),
    Bound {
        what: "target's and ctrace's CPU per operation",
        figure: Pair::cpu_of_both,
        ..cpu("svc", ALL, 1.05)
    },
    added("fds", "ctrace fds", "ns added to an open and its close", 400.0, 0),
    cpu("switch", "ctrace locks", 1.04),
    cpu("switch", "ctrace sched", 1.04),
    cpu("switch", ALL, 1.04),
];

/// On system calls' tracepoints.
pub(super) const CALL_NS: f64 = 10.0;
/// The row of ctrace as it is without options.
pub(super) const ALL: &str = "ctrace all";
/// The row of the least that any probe costs.
pub(super) const EMPTY: &str = "empty probes";

/// A bound of what ctrace itself takes.
pub(super) struct Own {
    pub(super) what: &'static str,
    pub(super) figure: Figure,
    pub(super) limit: f64,
    /// The number that is printed as 1.
    pub(super) unit: f64,
    pub(super) digits: usize,
    /// Beside other programs it says nothing.
    pub(super) minds_neighbours: bool,
}

pub(super) const OWN: [Own; 2] = [
    Own {
        what: "s to start",
        figure: |pair| get(&pair.on, "tracer_start_s"),
        limit: 0.2,
        unit: 1.0,
        digits: 2,
        minds_neighbours: true,
    },
    Own {
        what: "MB of RSS and maps",
        figure: |pair| get(&pair.on, "tracer_rss_bytes") + get(&pair.on, "tracer_maps_bytes"),
        limit: 40e6,
        unit: 1e6,
        digits: 1,
        minds_neighbours: false,
    },
];
