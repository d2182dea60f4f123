//! Stacks of goroutines that are known: what the runtime and the libraries of Go do, in words, and what can be done about it.
//!
//! Pure: by the names of a stack's functions and why it waits. Which goroutines belong to the runtime is decided as the
//! runtime itself does (`isSystemGoroutine`): by the function that they began with.

use crate::report::model::StackFrame;

/// What is known of the goroutines of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stack<'a> {
    /// Names of functions, leaf first, inlined ones too.
    pub functions: &'a [&'a str],
    /// Why it waits, as the runtime calls it.
    pub reason: Option<&'a str>,
    /// One of the channels that it waits on is that of a timer or a ticker: it carries times.
    pub ticks: bool,
}

/// A shape that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// The collector, the scavenger and others that the runtime starts for itself.
    Runtime,
    /// `main.main`, or what runs before it.
    Main,
    /// Runs finalizers and cleanups, and waits for the next.
    Finalizers,
    /// In a finalizer or cleanup of the program.
    Finalizer,
    /// Passes signals on.
    Signals,
    /// Writes a profile or a trace.
    Profiler,
    /// Accepts connections.
    Accepts,
    /// Wants a connection of a `database/sql` pool.
    PoolWait,
    /// Watches over open `sql.Rows`.
    OpenRows,
    /// Watches over an open `sql.Tx`.
    OpenTransaction,
    /// Opens and closes the connections of a `sql.DB`.
    OpenDatabase,
    /// Reads an HTTP client's connection; the body of an answer was neither read to its end nor closed.
    UnreadBody,
    /// Reads an HTTP client's connection that nobody uses.
    IdleClient,
    /// The other half of an HTTP connection or request that another goroutine stands for.
    HttpPair,
    /// Waits for a server's answer.
    AwaitsAnswer,
    /// Waits for a connection to a server.
    AwaitsConnection,
    /// Serves a connection that no request comes on.
    IdleServer,
    /// Serves a connection whose request is not complete, or, before Go 1.21 and without an `IdleTimeout`, has not begun.
    SlowRequest,
    /// Reads or writes a gRPC connection.
    Grpc,
    /// Waits for a context of a foreign kind to be cancelled.
    Context,
    /// `errgroup.Group.Wait`.
    ErrGroup,
    /// `errgroup.Group.Go` of a group that is full.
    ErrGroupFull,
    /// `sync.WaitGroup.Wait`.
    WaitGroup,
    /// `sync.Cond.Wait`.
    Cond,
    /// A mutex.
    Mutex,
    /// Waits for the next tick.
    Ticker,
    /// `time.Sleep`.
    Sleep,
    /// A nil channel, or a select without cases: nothing can end it.
    Forever,
}

/// The shape of a stack, if it is known.
#[must_use]
pub fn shape(stack: &Stack<'_>) -> Option<Shape> {
    let functions = stack.functions;
    let mut outermost = functions.iter().rev().filter(|name| **name != "runtime.goexit");
    let first = outermost.next()?;
    if let Some(shape) = of_the_runtime(first, functions) {
        return Some(shape);
    }
    // A `go` statement with arguments begins with a function that the compiler made, `main.f.func1` or `main.f.gowrap1`.
    let made = first.contains(".func") || first.contains(".gowrap");
    let second = outermost.next().filter(|_| made);
    let entries = [Some(first), second];
    let of_entry = entries
        .into_iter()
        .flatten()
        .find_map(|first| of_library(first, functions));
    of_entry.or_else(|| of_calls(stack, first))
}

/// The shape of a stack of the report, leaf first; `ticks` as in [`Stack`].
#[must_use]
pub fn of(frames: &[StackFrame], reason: Option<&str>, ticks: bool) -> Option<Shape> {
    let functions: Vec<&str> = frames
        .iter()
        .filter_map(|frame| frame.function.as_deref())
        .collect();
    shape(&Stack {
        functions: &functions,
        reason,
        ticks,
    })
}

/// By the function that a goroutine began with.
fn of_library(first: &str, functions: &[&str]) -> Option<Shape> {
    if first.starts_with("os/signal.loop") || first.starts_with("os/signal.NotifyContext.func") {
        return Some(Shape::Signals);
    }
    if first.starts_with("runtime/pprof.") || first.starts_with("runtime/trace.") {
        return Some(Shape::Profiler);
    }
    if first.starts_with("context.propagateCancel.func")
        || first.starts_with("context.(*cancelCtx).propagateCancel.func")
    {
        return Some(Shape::Context);
    }
    of_sql(first, functions).or_else(|| of_http(first, functions))
}

/// By what it calls, whoever began.
fn of_calls(stack: &Stack<'_>, first: &str) -> Option<Shape> {
    let functions = stack.functions;
    let has = |wanted: &str| functions.contains(&wanted);
    let grpc = [
        "http2Client).reader",
        "http2Server).keepalive",
        "loopyWriter).run",
    ];
    let of_grpc = |name: &&str| {
        name.strip_prefix("google.golang.org/grpc/internal/transport.(*")
            .is_some_and(|name| grpc.iter().any(|wanted| name.starts_with(wanted)))
    };
    if functions.iter().any(of_grpc) {
        return Some(Shape::Grpc);
    }
    let accepts = |name: &&str| name.starts_with("net.(*") && name.ends_with("Listener).Accept");
    if functions.iter().any(accepts) {
        return Some(Shape::Accepts);
    }
    let reason = stack.reason.unwrap_or_default();
    if let Some(shape) = of_locks(functions) {
        Some(shape)
    } else if reason.ends_with("(nil chan)") || reason.ends_with("(no cases)") {
        Some(Shape::Forever)
    } else if has("time.Sleep") {
        Some(Shape::Sleep)
    } else if stack.ticks {
        Some(Shape::Ticker)
    } else {
        (first == "runtime.main").then_some(Shape::Main)
    }
}

/// The runtime's own; `runtime.main` is the program's.
fn of_the_runtime(first: &str, functions: &[&str]) -> Option<Shape> {
    let finalizers = [
        "runtime.runfinq",
        "runtime.runFinalizers",
        "runtime.runCleanups",
        "runtime.(*cleanupQueue)",
    ];
    if finalizers.iter().any(|name| first.starts_with(name)) {
        // They are the program's while they run its code.
        let own = |name: &&str| {
            !name.starts_with("runtime.") && !name.starts_with("internal/") && !name.starts_with("reflect")
        };
        let shape = if functions.iter().any(own) {
            Shape::Finalizer
        } else {
            Shape::Finalizers
        };
        return Some(shape);
    }
    (first.starts_with("runtime.") && first != "runtime.main").then_some(Shape::Runtime)
}

fn of_sql(first: &str, functions: &[&str]) -> Option<Shape> {
    let method = first.strip_prefix("database/sql.(*").unwrap_or_default();
    let shape = match method {
        "Rows).awaitDone" => Shape::OpenRows,
        "Tx).awaitDone" => Shape::OpenTransaction,
        "DB).connectionOpener" | "DB).connectionCleaner" | "DB).connectionResetter" => Shape::OpenDatabase,
        _ => {
            let at = functions
                .iter()
                .position(|name| *name == "database/sql.(*DB).conn")?;
            // Not in the driver, which it also calls.
            let calls = functions.get(at.checked_sub(1)?)?;
            (*calls == "runtime.selectgo").then_some(Shape::PoolWait)?
        }
    };
    Some(shape)
}

fn of_http(first: &str, functions: &[&str]) -> Option<Shape> {
    let above = |wanted: &str| {
        let at = functions.iter().position(|name| *name == wanted)?;
        Some(functions.get(at.checked_sub(1)?).copied().unwrap_or_default())
    };
    let h2 = ["net/http.(*http2", "golang.org/x/net/http2.(*"];
    if let Some(method) = h2.iter().find_map(|prefix| first.strip_prefix(prefix)) {
        return match method {
            "ClientConn).readLoop" | "clientConnReadLoop).run" => Some(Shape::IdleClient),
            _ => None,
        };
    }
    match first {
        "net/http.(*persistConn).readLoop" => {
            return Some(match above("net/http.(*persistConn).readLoop") {
                Some("runtime.selectgo") => Shape::UnreadBody,
                _ => Shape::IdleClient,
            });
        }
        "net/http.(*persistConn).writeLoop" | "net/http.(*connReader).backgroundRead" => {
            return Some(Shape::HttpPair);
        }
        _ if first.starts_with("net/http.setRequestCancel.func") => return Some(Shape::HttpPair),
        _ => {}
    }
    let waits = |name| name == Some("runtime.selectgo");
    if waits(above("net/http.(*persistConn).roundTrip")) {
        return Some(Shape::AwaitsAnswer);
    }
    if waits(above("net/http.(*Transport).getConn")) {
        return Some(Shape::AwaitsConnection);
    }
    if first == "net/http.(*conn).serve" {
        return match above("net/http.(*conn).serve") {
            Some("bufio.(*Reader).Peek") => Some(Shape::IdleServer),
            Some("net/http.(*conn).readRequest") => Some(Shape::SlowRequest),
            _ => None,
        };
    }
    None
}

fn of_locks(functions: &[&str]) -> Option<Shape> {
    // What waits is near the leaf: a function further out only called what does.
    let near = functions.get(..functions.len().min(10)).unwrap_or_default();
    let parked = near.iter().position(|name| {
        matches!(
            *name,
            "runtime.semacquire1" | "sync.runtime_notifyListWait" | "runtime.chansend"
        )
    })?;
    let callers = functions.get(parked + 1..)?;
    let calls = |wanted: &str| callers.iter().take(6).any(|name| *name == wanted);
    if near.get(parked) == Some(&"runtime.chansend") {
        return calls("golang.org/x/sync/errgroup.(*Group).Go").then_some(Shape::ErrGroupFull);
    }
    let shape = if calls("sync.runtime_notifyListWait") || calls("sync.(*Cond).Wait") {
        // After the wait it takes its lock again.
        if near.get(parked) == Some(&"runtime.semacquire1") {
            Shape::Mutex
        } else {
            Shape::Cond
        }
    } else if calls("golang.org/x/sync/errgroup.(*Group).Wait") {
        Shape::ErrGroup
    } else if calls("sync.(*WaitGroup).Wait") {
        Shape::WaitGroup
    } else if callers
        .iter()
        .take(6)
        .any(|name| name.contains("sync.(*Mutex).") || name.contains("sync.(*RWMutex)."))
    {
        Shape::Mutex
    } else {
        return None;
    };
    Some(shape)
}

impl Shape {
    /// There is one, or as many as there are CPUs, or it ends with what another goroutine stands for: however many there are, they are
    /// not reported as a leak.
    #[must_use]
    pub const fn never_leaks(self) -> bool {
        matches!(
            self,
            Self::Runtime
                | Self::Main
                | Self::Finalizers
                | Self::Finalizer
                | Self::Signals
                | Self::Profiler
                | Self::Accepts
                | Self::HttpPair
        )
    }

    /// What it does, to go on with "N goroutines …": in the plural.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Runtime => "work for Go's runtime",
            Self::Main => "are in main",
            Self::Finalizers => "wait for finalizers to run",
            Self::Finalizer => "are in a finalizer; no other runs before it returns",
            Self::Signals => "wait for signals",
            Self::Profiler => "write a profile or a trace",
            Self::Accepts => "accept connections",
            Self::PoolWait => "wait for a connection of a database/sql pool, all of which are in use",
            Self::OpenRows => "watch over sql.Rows that are not closed",
            Self::OpenTransaction => "watch over transactions that are neither committed nor rolled back",
            Self::OpenDatabase => "serve a sql.DB that is not closed",
            Self::UnreadBody => "hold HTTP connections whose answer was neither read to its end nor closed",
            Self::IdleClient => "hold idle connections of HTTP clients",
            Self::HttpPair => "belong to HTTP connections that other goroutines hold",
            Self::AwaitsAnswer => "wait for the answer of an HTTP server",
            Self::AwaitsConnection => "wait for a connection to an HTTP server",
            Self::IdleServer => "serve HTTP connections that no request comes on",
            Self::SlowRequest => "wait for an HTTP request, or for the rest of one",
            Self::Grpc => "hold gRPC connections",
            Self::Context => "wait for a context that nobody has cancelled",
            Self::ErrGroup => "wait for an errgroup to end",
            Self::ErrGroupFull => "wait for a place in an errgroup that has reached its limit",
            Self::WaitGroup => "wait for a WaitGroup",
            Self::Cond => "wait for a Cond to be signalled",
            Self::Mutex => "wait for a mutex",
            Self::Ticker => "wait for a timer or ticker",
            Self::Sleep => "sleep",
            Self::Forever => "wait for what cannot happen: a nil channel or a select without cases",
        }
    }

    /// What can be done when there are too many, or they wait too long; None where that depends on the program.
    #[must_use]
    pub const fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::Finalizer => "keep finalizers short; let them start a goroutine for what blocks",
            Self::PoolWait => {
                "give connections back sooner (close Rows, end transactions), or raise SetMaxOpenConns if the database allows it"
            }
            Self::OpenRows => "close Rows on every path: defer rows.Close()",
            Self::OpenTransaction => "end transactions on every path: defer tx.Rollback()",
            Self::OpenDatabase => "call sql.Open once and share the DB; close those that are no longer used",
            Self::UnreadBody => "close the body of every answer: defer response.Body.Close()",
            Self::IdleClient => {
                "share one http.Client; set MaxIdleConnsPerHost and IdleConnTimeout, or call CloseIdleConnections"
            }
            Self::AwaitsAnswer => "give the client or the request's context a timeout",
            Self::AwaitsConnection => "raise MaxConnsPerHost, or close the bodies of answers sooner",
            Self::IdleServer => "set the server's IdleTimeout",
            Self::SlowRequest => "set the server's ReadHeaderTimeout and IdleTimeout",
            Self::Grpc => "share one grpc.ClientConn, and close those that are no longer used",
            Self::Context => "cancel every context: defer cancel()",
            Self::ErrGroup | Self::WaitGroup => "see what the goroutines that it waits for are stuck in",
            Self::ErrGroupFull => "raise its limit, or see what its goroutines are stuck in",
            Self::Cond => "signal on every path that makes the condition true",
            Self::Ticker => "return when the work is over: stopping a ticker does not close its channel",
            Self::Forever => "make the channel before it is used",
            Self::Runtime
            | Self::Main
            | Self::Finalizers
            | Self::Signals
            | Self::Profiler
            | Self::Accepts
            | Self::HttpPair
            | Self::Mutex
            | Self::Sleep => return None,
        })
    }
}

#[cfg(test)]
#[path = "go_shapes_tests.rs"]
mod tests;
