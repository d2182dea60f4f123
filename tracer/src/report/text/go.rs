//! Goroutines.

use super::View;
use super::escape::{cut, name};
use super::page::Column;
use super::screen::{LABEL, word};
use crate::report::frames::without_path;
use crate::report::model::{Go, GoGc, GoPeer, GoPool, GoStack, GoWaitsOn, LockKind, Verdict};
use crate::report::units::{bytes, count, counted, modes, percent, tail, time};

/// Stacks of goroutines shown whole, for one who does not ask for more.
const WHOLE: usize = 3;
/// Columns of a `go` statement's place.
const PLACE: usize = 48;

/// What goroutines of a row do.
fn doing(status: &str, reason: Option<&str>) -> String {
    name(reason.unwrap_or(status), 28)
}

/// Made by the runtime for itself.
fn is_own(row: &GoStack) -> bool {
    row.created_by
        .as_deref()
        .is_some_and(|name| name.starts_with("runtime."))
}

impl View<'_> {
    /// One line of the first screen.
    pub(super) fn go_line(&self) -> Vec<String> {
        let Some(go) = &self.report.go else {
            return Vec::new();
        };
        let worst = go.by_stack.iter().find(|row| !is_own(row));
        let most = worst.map_or_else(String::new, |row| {
            let doing = doing(&row.status, row.wait_reason.as_deref());
            format!(
                "; {} in {doing}, {}",
                count(row.count),
                self.app(row.stack.as_ref())
            )
        });
        let growth: f64 = go.by_creator.iter().map(|row| row.growth_per_s).sum();
        let text = format!("{} alive, {}{most}", count(go.goroutines), Self::per_s(growth));
        let room = self.page.width.saturating_sub(LABEL);
        self.page.labelled(LABEL, "Goroutines", &cut(&text, room))
    }

    pub(super) fn go_details(&self) -> Vec<String> {
        let all = self.report.go.iter().chain(&self.report.go_others);
        all.flat_map(|go| self.one_go(go)).collect()
    }

    fn one_go(&self, go: &Go) -> Vec<String> {
        let version = go
            .version
            .as_deref()
            .map_or_else(|| "Go".to_owned(), |version| name(version, 24));
        let states: Vec<String> = go
            .by_status
            .iter()
            .map(|(status, n)| format!("{} {}", count(*n), name(status, 16)))
            .collect();
        let heading = format!(
            "Goroutines of {} ({version}): {} alive, {}",
            go.pid,
            count(go.goroutines),
            states.join(", ")
        );
        let told: Vec<&GoStack> = go
            .by_stack
            .iter()
            .filter(|row| self.options.verbose || !is_own(row))
            .collect();
        let own: u64 = go
            .by_stack
            .iter()
            .filter(|row| is_own(row))
            .map(|row| row.count)
            .sum();
        let rows: Vec<&GoStack> = told.iter().copied().take(self.top()).collect();
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    word(&row.verdict),
                    count(row.count),
                    Self::per_s(row.growth_per_s),
                    doing(&row.status, row.wait_reason.as_deref()),
                    time(row.wait_ns.max_ns),
                    self.chain(row.stack.as_ref()),
                    row.created_by
                        .as_deref()
                        .map_or_else(String::new, |creator| name(without_path(creator), 40)),
                ]
            })
            .collect();
        let columns = [
            Column::Text(""),
            Column::Number("live"),
            Column::Number("growth"),
            Column::Text("doing"),
            Column::Number("oldest"),
            Column::Text("where"),
            Column::Text("created by"),
        ];
        let mut lines = vec![self.page.heading(&heading)];
        lines.extend(self.page.table("", &columns, &cells));
        lines.extend(self.rest(2, told.len(), self.top(), "stack"));
        if own > 0 && !self.options.verbose {
            lines.push(
                self.page
                    .line(2, &format!("and {} of the runtime's own", count(own))),
            );
        }
        let suspect = |row: &&&GoStack| matches!(row.verdict, Verdict::Leaking | Verdict::Growing);
        let whole = if self.options.verbose { self.top() } else { WHOLE };
        for row in rows
            .iter()
            .filter(|row| self.options.verbose || suspect(row))
            .take(whole)
        {
            lines.extend(self.one_go_stack(row));
        }
        lines.extend(self.go_waits(go));
        for pool in go.pools.iter().take(self.top()) {
            lines.extend(self.page.wrap(2, &connections(pool)));
        }
        lines.extend(self.exact_waits(go));
        if let Some(gc) = &go.gc {
            lines.extend(self.page.wrap(2, &collector(gc)));
        }
        lines.extend(self.page.wrap(2, &snapshots(go)));
        lines
    }

    fn one_go_stack(&self, row: &GoStack) -> Vec<String> {
        let verdict = format!(
            "{} ({} sure): {} in {}, {} came, {} left, {} at start, {}",
            word(&row.verdict),
            percent(row.confidence),
            count(row.count),
            row.shape.as_deref().map_or_else(
                || doing(&row.status, row.wait_reason.as_deref()),
                |shape| format!(
                    "{}, they {}",
                    doing(&row.status, row.wait_reason.as_deref()),
                    name(shape, 80)
                ),
            ),
            count(row.opened),
            count(row.closed),
            count(row.live_at_start),
            Self::per_s(row.growth_per_s)
        );
        let mut lines = self.page.wrap(2, &verdict);
        if row.wait_ns.count > 0 {
            lines.extend(
                self.page
                    .wrap(4, &format!("for at least: {}", self.spread(&row.wait_ns))),
            );
        }
        if let Some(on) = &row.waits_on {
            lines.extend(self.page.wrap(4, &waits_on(on)));
        }
        if !row.peers.is_empty() {
            lines.extend(self.page.wrap(4, &peers(&row.peers)));
        }
        lines.extend(self.frames(8, row.stack.as_ref()));
        if let Some(creator) = &row.created_by {
            let place = row
                .created_at
                .as_deref()
                .map_or_else(String::new, |place| format!("  {}", name(place, PLACE)));
            let text = format!("created by {}{place}", name(creator, 60));
            lines.push(self.page.line(8, &text));
        }
        lines.extend(self.asked_by(8, &row.asked_by));
        lines
    }

    /// Where their time went, by samples.
    fn go_waits(&self, go: &Go) -> Vec<String> {
        let cells: Vec<Vec<String>> = go
            .waits
            .iter()
            .take(if self.options.verbose { self.top() } else { WHOLE })
            .map(|wait| {
                let interval = wait.total_ci_ns.map_or_else(String::new, |[low, high]| {
                    format!("{} … {}", time(low), time(high))
                });
                vec![
                    doing(&wait.status, wait.wait_reason.as_deref()),
                    time(wait.total_ns),
                    interval,
                    count(wait.samples),
                    self.chain(wait.stack.as_ref()),
                ]
            })
            .collect();
        if cells.is_empty() {
            return Vec::new();
        }
        let columns = [
            Column::Text(""),
            Column::Number("time"),
            Column::Word("95 %"),
            Column::Number("samples"),
            Column::Text("where"),
        ];
        self.page.table("  Time by samples", &columns, &cells)
    }
}

/// What goroutines of a row wait on.
fn waits_on(on: &GoWaitsOn) -> String {
    let asked = if on.known < on.asked {
        format!("{} of {} asked", count(on.known), count(on.asked))
    } else {
        format!("{} asked", count(on.asked))
    };
    let Some(first) = on.most.first() else {
        return format!("they wait on nil channels, which nothing can end ({asked})");
    };
    let kind = match (&first.channel, first.kind) {
        (Some(channel), _) if channel.ticks => "timer",
        (Some(_), _) => "channel",
        (None, LockKind::GoMutex) => "sync.Mutex",
        (None, LockKind::GoRwmutex) => "sync.RWMutex",
        (None, LockKind::GoWaitgroup) => "sync.WaitGroup",
        (None, LockKind::GoCond) => "sync.Cond",
        (None, _) => "semaphore",
    };
    let address = name(&first.address, 18);
    let mut text = if on.objects == 1 {
        format!("all wait on the {kind} {address}")
    } else if first.waiters == 1 {
        format!("each waits on a {kind} of its own")
    } else {
        format!(
            "they wait on {} different ones, {} of them on the {kind} {address}",
            count(on.objects),
            count(first.waiters)
        )
    };
    if let Some(channel) = first.channel.as_ref().filter(|channel| !channel.ticks) {
        let state = match (channel.closed, channel.capacity) {
            (true, _) => ", which is closed".to_owned(),
            (false, 0) => ", without a buffer".to_owned(),
            (false, capacity) => format!(", {} of {} in its buffer", count(channel.len), count(capacity)),
        };
        text.push_str(&state);
    }
    if let Some(longest) = first.longest_ns {
        text = format!("{text}, the first since {}", time(longest));
    }
    format!("{text} ({asked})")
}

/// Whom they have connections to.
fn peers(peers: &[GoPeer]) -> String {
    let each: Vec<String> = peers
        .iter()
        .map(|peer| {
            let proxy = peer.proxy.as_deref();
            let by = proxy.map_or_else(String::new, |proxy| format!(" by {}", name(proxy, 48)));
            format!(
                "{} to {}://{}{by}",
                count(peer.connections),
                name(&peer.scheme, 8),
                name(&peer.host, 64)
            )
        })
        .collect();
    format!("connections: {}", each.join(", "))
}

/// What became of a pool.
fn connections(pool: &GoPool) -> String {
    let mut text = format!(
        "Pool {} of {}: {} open, {} idle; {}",
        name(&pool.address, 18),
        counted(pool.max_open, "connection"),
        count(pool.open),
        count(pool.idle),
        counted(pool.waits, "wait"),
    );
    if let Some(total) = pool.wait_total_ns {
        text = format!("{text} ({} in all)", time(total));
    }
    if let (Some(requests), Some(waited)) = (pool.requests, pool.requests_waited) {
        text = format!(
            "{text}; {} of {} waited",
            count(waited),
            counted(requests, "request")
        );
    }
    if let Some(wait) = pool.wait.as_ref().filter(|wait| wait.count > 0) {
        text = format!("{text}: {}", tail(wait));
        if let Some(modes) = modes(&wait.modes) {
            text = format!("{text}, {modes}");
        }
    }
    if let Some(gave_up) = pool.gave_up.filter(|&number| number > 0) {
        text = format!("{text}; {} gave up", count(gave_up));
    }
    format!(
        "{text}; exhausted {} of the time, {:.1} waiting on average",
        percent(pool.exhausted_share),
        pool.mean_waiting
    )
}

/// What the collector did.
fn collector(gc: &GoGc) -> String {
    let mut text = counted(gc.cycles, "collection");
    if gc.pauses.count > 0 {
        text = format!(
            "{text}, pauses p50 {}, max {}, {} of the time stopped",
            time(gc.pauses.p50_ns),
            time(gc.pauses.max_ns),
            percent(gc.pause_share)
        );
    }
    if let Some(share) = gc.cpu_share.filter(|_| gc.cycles > 0) {
        text = format!("{text}, {} of its CPUs", percent(share));
    }
    if let Some(live) = gc.heap_live_bytes {
        let goal = gc.heap_goal_bytes.map_or_else(String::new, |goal| {
            format!(", the next at {}", bytes(goal as f64))
        });
        text = format!("{text}; {} of heap alive{goal}", bytes(live as f64));
    }
    if let Some(queue) = gc.run_queue.as_ref().filter(|queue| queue.count > 0) {
        text = format!(
            "{text}; goroutines ready to run wait for p50 {}, p99 {}",
            time(queue.p50_ns),
            time(queue.p99_ns)
        );
    }
    text
}

/// How they were read.
fn snapshots(go: &Go) -> String {
    let how = &go.snapshots;
    let mut text = format!(
        "{}, now one every {}, {} of CPU; {} walked, {} found unchanged",
        counted(how.count, "snapshot"),
        time(how.interval_ns),
        time(how.cpu_ns),
        counted(how.walked, "stack"),
        count(how.unchanged)
    );
    for (n, what) in [
        (how.moved, "moved while they were read"),
        (how.inconsistent, "not explained by the runtime's tables"),
        (how.unreadable, "not readable"),
        (go.folded, "in further stacks"),
    ] {
        if n > 0 {
            text = format!("{text}; {} {what}, not shown", count(n));
        }
    }
    text
}
