//! What `--go-write` brought, and what it wrote.

use super::View;
use super::escape::name;
use super::page::Column;
use crate::report::frames::without_path;
use crate::report::model::{Go, GoBlocked, GoOutcome, GoProfiles, GoProof, GoWritten, StackKey};
use crate::report::units::{count, counted, time};

impl View<'_> {
    pub(super) fn go_write_details(&self) -> Vec<String> {
        let all = self.report.go.iter().chain(&self.report.go_others);
        all.flat_map(|go| self.one_go_write(go)).collect()
    }

    fn one_go_write(&self, go: &Go) -> Vec<String> {
        if go.written.is_empty() && go.profiles.is_none() && go.proof.is_none() {
            return Vec::new();
        }
        let heading = format!("What --go-write brought of {}", go.pid);
        let mut lines = vec![self.page.heading(&heading)];
        if let Some(profiles) = &go.profiles {
            lines.extend(self.go_profiles(profiles));
        }
        if let Some(proof) = &go.proof {
            lines.extend(self.go_proof(proof));
        }
        for written in &go.written {
            lines.extend(self.page.wrap(2, &put_back(written)));
        }
        lines
    }

    fn go_profiles(&self, profiles: &GoProfiles) -> Vec<String> {
        let mut lines = self.go_blocked("  Blocked, by who waited", &profiles.block);
        lines.extend(self.go_blocked("  Blocked on locks, by who let go", &profiles.mutex));
        let rate = match profiles.block_rate_ns {
            0 => "no waits but those for locks".to_owned(),
            1 => "every wait".to_owned(),
            rate => format!("one wait for each {} blocked, the others made up for", time(rate)),
        };
        let own = if profiles.own_rates {
            ", as the program itself asks for"
        } else {
            ""
        };
        let mut text = format!("Counted by the runtime: {rate}{own}");
        if profiles.unreadable > 0 {
            text = format!("{text}; {} not shown", counted(profiles.unreadable, "stack"));
        }
        lines.extend(self.page.wrap(2, &text));
        lines
    }

    fn go_blocked(&self, heading: &str, rows: &[GoBlocked]) -> Vec<String> {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .take(self.top())
            .map(|row| {
                vec![
                    self.leaf(row.stack.as_ref()),
                    time(row.total_ns),
                    count(row.count),
                    time(row.total_ns / row.count.max(1)),
                    self.chain(row.stack.as_ref()),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("time"),
            Column::Number("count"),
            Column::Number("mean"),
            Column::Text("where"),
        ];
        let mut lines = self.page.table(heading, &columns, &cells);
        lines.extend(self.rest(2, rows.len(), self.top(), "stack"));
        lines
    }

    /// The function that was waited in: it tells for what.
    fn leaf(&self, key: Option<&StackKey>) -> String {
        let frames = key.and_then(|key| self.report.stacks.get(key));
        let function = frames.and_then(|frames| frames.first()?.function.as_deref());
        function.map_or_else(|| "?".to_owned(), |function| name(function, 28))
    }

    fn go_proof(&self, proof: &GoProof) -> Vec<String> {
        if proof.searches == 0 {
            let text = "No collection ended while ctrace traced: nothing is known of leaks by proof.";
            return self.page.wrap(2, text);
        }
        let mut lines = self.page.wrap(
            2,
            &format!(
                "{} searched for leaks: {} leaked for good",
                counted(proof.searches, "collection"),
                counted(proof.goroutines, "goroutine")
            ),
        );
        for row in proof.by_stack.iter().take(self.top()) {
            let creator = row.created_by.as_deref().map_or_else(String::new, |creator| {
                format!(", created by {}", name(without_path(creator), 40))
            });
            let doing = name(row.wait_reason.as_deref().unwrap_or("waiting"), 28);
            let text = format!(
                "{} in {doing}: {}{creator}",
                count(row.count),
                self.chain(row.stack.as_ref())
            );
            lines.extend(self.page.wrap(4, &text));
        }
        lines
    }
}

fn put_back(written: &GoWritten) -> String {
    let what = format!(
        "Written: {} at {}, {} instead of {}",
        name(&written.what, 48),
        name(&written.address, 20),
        written.new,
        written.old
    );
    let outcome = match written.outcome {
        GoOutcome::Restored => "put back, and read back",
        GoOutcome::Taken => "taken by the program, which set it back itself",
        GoOutcome::Changed => "left as it is: the program has set it to something else since",
        GoOutcome::Gone => "gone with the program",
        GoOutcome::Failed => "NOT put back",
        GoOutcome::Standing => "to be put back when ctrace ends",
    };
    format!("{what}: {outcome}")
}
