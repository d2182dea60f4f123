//! What ctrace's own report says of what it cost.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::stats::Window;

/// The report's figures that replace or complete what was seen from outside.
pub(super) fn figures(report: &Value) -> Window {
    let overhead = &report["overhead"];
    let known = [
        ("tracer_rss_bytes", &overhead["rss_bytes"]),
        ("tracer_maps_bytes", &overhead["maps_bytes"]),
        ("names_rss_bytes", &overhead["symbolize_peak_rss_bytes"]),
        ("hit_rate", &overhead["memos"]["hit_rate"]),
    ];
    known
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.as_f64()?)))
        .collect()
}

/// Every loss that is not zero, by cause.
pub(super) fn losses(report: &Value) -> BTreeMap<String, u64> {
    let causes = report["losses"].as_object().into_iter().flatten();
    causes
        .filter_map(|(cause, count)| Some((cause.clone(), count.as_u64().filter(|count| *count > 0)?)))
        .collect()
}

/// Whether the probes on descriptors are system calls' tracepoints, which tax every call of every process.
pub(super) fn on_tracepoints(report: &Value) -> bool {
    let mut probes = report["probes"].as_array().into_iter().flatten();
    probes.any(|probe| {
        probe["name"].as_str().is_some_and(|name| name.starts_with("fd_"))
            && probe["attach"] == "tracepoint"
            && !probe["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("fd_uring"))
    })
}

/// The parts that are kept among the raw numbers.
pub(super) fn kept(report: &Value) -> Value {
    json!({
        "window": report["window"],
        "overhead": report["overhead"],
        "losses": report["losses"],
        "probes": report["probes"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_report_does_not_say_is_no_figure() {
        let report = json!({
            "overhead": {"rss_bytes": 7, "maps_bytes": null, "memos": {"hit_rate": 0.5}},
            "losses": {"ring_full": 3, "map_full": 0, "complete": false, "stack_failed_by": {}},
        });
        let expected = [("hit_rate", 0.5), ("tracer_rss_bytes", 7.0)];
        assert_eq!(
            figures(&report),
            expected.map(|(key, value)| (key.to_owned(), value)).into()
        );
        assert_eq!(losses(&report), [("ring_full".to_owned(), 3)].into());
        assert!(losses(&Value::Null).is_empty());
    }

    #[test]
    fn the_route_of_descriptors() {
        let probes = |name: &str, attach: &str| json!({"probes": [{"name": name, "attach": attach}]});
        assert!(on_tracepoints(&probes("fd_close_enter", "tracepoint")));
        assert!(!on_tracepoints(&probes("fd_close_enter", "fentry")));
        assert!(!on_tracepoints(&probes("fd_uring_submit", "tracepoint")));
        assert!(!on_tracepoints(&probes("sched_switch", "tp_btf")));
    }
}
