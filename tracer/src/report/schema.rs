//! The JSON Schema of a report.

use super::{diff::Diff, model::Report};

/// The JSON Schema (draft 2020-12) that every report validates against, pretty-printed.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(Report);
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

/// The JSON Schema of what `ctrace diff --json` writes.
#[must_use]
pub fn diff_schema() -> String {
    let schema = schemars::schema_for!(Diff);
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::sample;

    #[test]
    fn is_kept() {
        insta::assert_snapshot!("schema", schema());
        insta::assert_snapshot!("diff_schema", diff_schema());
    }

    #[test]
    fn reports_validate() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (name, report) in sample::all() {
            let document = serde_json::to_value(&report).unwrap();
            let errors: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
        }
        let mut broken = serde_json::to_value(sample::contended()).unwrap();
        broken["locks"][0]["waits"] = "many".into();
        assert!(!validator.is_valid(&broken), "the schema must be able to say no");
    }

    #[test]
    fn reports_survive_the_way_there_and_back() {
        for (name, report) in sample::all() {
            let text = serde_json::to_string(&report).unwrap();
            let back: Report = serde_json::from_str(&text).unwrap();
            assert_eq!(back, report, "{name}");
        }
    }
}
