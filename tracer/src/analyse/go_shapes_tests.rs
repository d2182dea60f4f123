//! Stacks as Go 1.19 and 1.27 have them.

use super::*;

/// Functions leaf first, without `runtime.goexit`, which is added; then why it waits.
fn told(functions: &str, reason: &str) -> Option<Shape> {
    let mut functions: Vec<&str> = functions.split_whitespace().collect();
    functions.push("runtime.goexit");
    shape(&Stack {
        functions: &functions,
        reason: Some(reason).filter(|reason| !reason.is_empty()),
        ..Stack::default()
    })
}

const READ: &str = "runtime.gopark runtime.netpollblock internal/poll.runtime_pollWait internal/poll.(*pollDesc).wait \
                    internal/poll.(*pollDesc).waitRead internal/poll.(*FD).Read net.(*netFD).Read net.(*conn).Read";
const SELECT: &str = "runtime.gopark runtime.selectgo";
const SEMAPHORE: &str = "runtime.gopark runtime.goparkunlock runtime.semacquire1";

#[test]
fn the_runtimes_own_goroutines() {
    for functions in [
        "runtime.gopark runtime.gcBgMarkWorker",
        "runtime.gopark runtime.goparkunlock runtime.bgsweep",
        "runtime.gopark runtime.(*scavengerState).park runtime.bgscavenge",
        "runtime.gopark runtime.goparkunlock runtime.forcegchelper",
        "runtime.gopark runtime.selectgo runtime.ensureSigM.func1",
    ] {
        assert_eq!(told(functions, ""), Some(Shape::Runtime), "{functions}");
    }
    for idle in [
        "runtime.gopark runtime.goparkunlock runtime.runfinq",
        "runtime.gopark runtime.runFinalizers",
        "runtime.gopark runtime.(*cleanupQueue).dequeue runtime.runCleanups",
    ] {
        assert_eq!(told(idle, "finalizer wait"), Some(Shape::Finalizers), "{idle}");
    }
    let stuck = "runtime.gopark time.Sleep main.main.func3 runtime.call16 runtime.runfinq";
    assert_eq!(told(stuck, "sleep"), Some(Shape::Finalizer));
    let main = "runtime.gopark runtime.chanrecv runtime.chanrecv1 main.main runtime.main";
    assert_eq!(told(main, "chan receive"), Some(Shape::Main));
    assert_eq!(
        told("os/signal.signal_recv os/signal.loop", ""),
        Some(Shape::Signals)
    );
    assert_eq!(
        told(&format!("{SELECT} os/signal.NotifyContext.func1"), "select"),
        Some(Shape::Signals)
    );
}

#[test]
fn pools_of_databases() {
    let asks = format!("{SELECT} database/sql.(*DB).conn database/sql.(*DB).Conn main.ask main.handle");
    assert_eq!(told(&asks, "select"), Some(Shape::PoolWait));
    // The driver connects.
    let connects = format!("{READ} example.com/driver.dial database/sql.(*DB).conn database/sql.(*DB).Conn");
    assert_eq!(told(&connects, "IO wait"), None);
    for (last, wanted) in [
        ("Rows).awaitDone", Shape::OpenRows),
        ("Tx).awaitDone", Shape::OpenTransaction),
        (
            "DB).connectionOpener database/sql.OpenDB.func1",
            Shape::OpenDatabase,
        ),
    ] {
        assert_eq!(
            told(&format!("{SELECT} database/sql.(*{last}"), "select"),
            Some(wanted)
        );
    }
}

#[test]
fn http_clients_and_servers() {
    let peek = "bufio.(*Reader).fill bufio.(*Reader).Peek";
    let cases = [
        (
            format!("{SELECT} net/http.(*persistConn).readLoop"),
            Some(Shape::UnreadBody),
        ),
        (
            format!("{READ} net/http.(*persistConn).Read {peek} net/http.(*persistConn).readLoop"),
            Some(Shape::IdleClient),
        ),
        (
            format!("{SELECT} net/http.(*persistConn).readLoop net/http.(*Transport).dialConn.func5"),
            Some(Shape::UnreadBody),
        ),
        (
            format!("{SELECT} net/http.(*persistConn).writeLoop net/http.(*Transport).dialConn.gowrap3"),
            Some(Shape::HttpPair),
        ),
        (
            format!("{READ} net/http.(*connReader).backgroundRead"),
            Some(Shape::HttpPair),
        ),
        (
            format!("{SELECT} net/http.(*persistConn).roundTrip net/http.(*Transport).roundTrip main.call"),
            Some(Shape::AwaitsAnswer),
        ),
        (
            format!("{SELECT} net/http.(*Transport).getConn net/http.(*Transport).roundTrip main.call"),
            Some(Shape::AwaitsConnection),
        ),
        (
            format!("{READ} net/http.(*connReader).Read {peek} net/http.(*conn).serve"),
            Some(Shape::IdleServer),
        ),
        (
            format!(
                "{READ} net/http.(*connReader).Read bufio.(*Reader).fill bufio.(*Reader).ReadSlice \
                 net/http.readRequest net/http.(*conn).readRequest net/http.(*conn).serve"
            ),
            Some(Shape::SlowRequest),
        ),
        // The program's own handler.
        (
            "runtime.gopark runtime.chanrecv main.handle net/http.HandlerFunc.ServeHTTP \
             net/http.serverHandler.ServeHTTP net/http.(*conn).serve"
                .to_owned(),
            None,
        ),
        (
            "runtime.gopark internal/poll.runtime_pollWait internal/poll.(*FD).Accept net.(*netFD).accept \
             net.(*TCPListener).accept net.(*TCPListener).Accept net/http.(*Server).Serve"
                .to_owned(),
            Some(Shape::Accepts),
        ),
    ];
    for (functions, wanted) in cases {
        assert_eq!(told(&functions, ""), wanted, "{functions}");
    }
}

#[test]
fn waits_for_others() {
    let group = format!("{SEMAPHORE} sync.runtime_SemacquireWaitGroup sync.(*WaitGroup).Wait");
    let cases = [
        (format!("{group} main.f"), Some(Shape::WaitGroup)),
        (
            format!("{group} golang.org/x/sync/errgroup.(*Group).Wait main.f"),
            Some(Shape::ErrGroup),
        ),
        (
            "runtime.gopark runtime.chansend runtime.chansend1 golang.org/x/sync/errgroup.(*Group).Go main.f"
                .to_owned(),
            Some(Shape::ErrGroupFull),
        ),
        (
            format!(
                "{SEMAPHORE} sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow sync.(*Mutex).Lock main.f"
            ),
            Some(Shape::Mutex),
        ),
        (
            "runtime.gopark runtime.goparkunlock sync.runtime_notifyListWait sync.(*Cond).Wait main.f"
                .to_owned(),
            Some(Shape::Cond),
        ),
        // A Cond that has been signalled takes its lock.
        (
            format!(
                "{SEMAPHORE} sync.runtime_SemacquireMutex sync.(*Mutex).lockSlow sync.(*Mutex).Lock \
                 sync.(*Cond).Wait main.f"
            ),
            Some(Shape::Mutex),
        ),
        (
            format!("{SELECT} context.(*cancelCtx).propagateCancel.func2"),
            Some(Shape::Context),
        ),
        (
            format!("{SELECT} context.propagateCancel.func1"),
            Some(Shape::Context),
        ),
        ("runtime.gopark time.Sleep main.f".to_owned(), Some(Shape::Sleep)),
        (format!("{SELECT} main.worker"), None),
        (String::new(), None),
    ];
    for (functions, wanted) in cases {
        assert_eq!(told(&functions, ""), wanted, "{functions}");
    }
    let nil = "runtime.gopark runtime.chanrecv runtime.chanrecv1 main.f";
    assert_eq!(told(nil, "chan receive (nil chan)"), Some(Shape::Forever));
    assert_eq!(told(nil, "chan receive"), None);
    assert_eq!(
        told("runtime.gopark runtime.block main.f", "select (no cases)"),
        Some(Shape::Forever)
    );
    let tick = Stack {
        functions: &[
            "runtime.gopark",
            "runtime.chanrecv",
            "runtime.chanrecv2",
            "main.poll",
            "runtime.goexit",
        ],
        ticks: true,
        ..Stack::default()
    };
    assert_eq!(shape(&tick), Some(Shape::Ticker));
}

#[test]
fn what_never_leaks_needs_no_remedy_but_a_finalizer() {
    let all = [
        Shape::Runtime,
        Shape::Main,
        Shape::Finalizers,
        Shape::Signals,
        Shape::Profiler,
        Shape::Accepts,
        Shape::HttpPair,
    ];
    for shape in all {
        assert!(shape.never_leaks() && shape.remedy().is_none(), "{shape:?}");
    }
    for shape in [
        Shape::PoolWait,
        Shape::UnreadBody,
        Shape::IdleClient,
        Shape::Context,
        Shape::Ticker,
    ] {
        assert!(!shape.never_leaks() && shape.remedy().is_some(), "{shape:?}");
    }
}
