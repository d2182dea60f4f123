//! What to say of a stack in one name: the application's own function.

use super::model::StackFrame;

/// Files whose frames are never the application's, by the beginning of their name.
const LIBRARIES: [&str; 13] = [
    "libc.so",
    "libc-2.",
    "libc.musl",
    "ld-linux",
    "ld-musl",
    "ld-2.",
    "ld.so",
    "libpthread",
    "libstdc++",
    "libc++",
    "libgcc_s",
    "linux-vdso",
    "[vdso]",
];

/// Sources that are never the application's, by a part of their path.
const SOURCES: [&str; 5] = [
    "/library/std/src/",
    "/library/core/src/",
    "/library/alloc/src/",
    "/parking_lot-0",
    "/lock_api-0",
];

/// Wrappers around locks and waits, by the beginning of their name: what a statically linked program, or a header,
/// puts into the application's own file.
const WRAPPERS: [&str; 52] = [
    // Rust.
    "std::",
    "core::",
    "alloc::",
    "parking_lot::",
    "parking_lot_core::",
    "lock_api::",
    "tokio::sync::",
    "crossbeam_channel::",
    "crossbeam_utils::",
    // C and C++ (whose `std::` is above).
    "pthread_",
    "__pthread_",
    "___pthread_",
    "__GI_",
    "__lll_",
    "lll_",
    "futex",
    "__futex",
    "__gthread",
    "__gthrw_",
    "syscall",
    "__syscall",
    "__libc_",
    "__internal_syscall",
    "nptl_",
    "__nptl_",
    "sem_",
    "__new_sem_",
    "absl::Mutex",
    "absl::synchronization_internal",
    "boost::mutex",
    "folly::detail::",
    "raw_syscall",
    // Interpreters and runtimes.
    "take_gil",
    "PyThread_acquire_lock",
    "PyEval_RestoreThread",
    "ObjectMonitor::",
    "ObjectSynchronizer::",
    "Unsafe_Park",
    "Parker::",
    "PlatformEvent::",
    "os::PlatformEvent::",
    "Runtime1::",
    "SharedRuntime::",
    "OptoRuntime::",
    "InterpreterRuntime::",
    "Interpreter",
    "StubRoutines",
    "Builtins_",
    "Builtin:",
    "v8::",
    "runtime.",
    // Go's linker leaves the package out where a closure of the runtime was inlined.
    "_.",
];

/// Go's standard library, by the first part of its packages' names.
const GO_STANDARD: [&str; 36] = [
    "archive",
    "bufio",
    "bytes",
    "compress",
    "container",
    "context",
    "crypto",
    "database",
    "debug",
    "encoding",
    "errors",
    "expvar",
    "fmt",
    "hash",
    "html",
    "image",
    "internal",
    "io",
    "iter",
    "log",
    "math",
    "mime",
    "net",
    "os",
    "path",
    "reflect",
    "regexp",
    "runtime",
    "slices",
    "sort",
    "strings",
    "sync",
    "syscall",
    "testing",
    "text",
    "time",
];

/// The application's function in a stack, leaf first: the first frame that lies neither in the C or C++ runtime nor
/// in a known wrapper of a lock or a wait. A stack of nothing else answers with its leaf; an empty one with `None`.
#[must_use]
pub fn app_function(stack: &[StackFrame]) -> Option<&StackFrame> {
    stack.get(app_index(stack))
}

/// The functions of a stack, and where a frame is that has none: stacks in which these are the same are told as one.
pub(crate) fn path_of(stack: &[StackFrame]) -> Vec<String> {
    let word = |frame: &StackFrame| {
        frame.function.clone().unwrap_or_else(|| {
            let module = frame.module.as_deref().unwrap_or_default();
            format!("{module} {}", frame.address)
        })
    };
    stack.iter().map(word).collect()
}

/// Index of [`app_function`]; 0 when there is none.
pub(crate) fn app_index(stack: &[StackFrame]) -> usize {
    // A goroutine of Go's own library may have nothing else.
    let own = stack.iter().position(is_app);
    own.or_else(|| stack.iter().position(is_code)).unwrap_or(0)
}

/// Whether the frame is the application's own.
pub(crate) fn is_app(frame: &StackFrame) -> bool {
    is_code(frame) && !is_go_standard(frame)
}

/// Whether it is neither a runtime's nor a wrapper's.
fn is_code(frame: &StackFrame) -> bool {
    let file = frame.module.as_deref().map_or("", basename);
    let name = frame.function.as_deref().map_or("", bare);
    // An inlined generic of Rust's library has no path before its name, but its file tells.
    let source = frame.file.as_deref().unwrap_or_default();
    // What a runtime compiled and nobody names cannot be told from the runtime's own stubs.
    let compiled = frame.module.is_none() && frame.function.is_none();
    !compiled
        && name != "_start"
        && !name.ends_with(" Runtime1 stub")
        && !SOURCES.iter().any(|sources| source.contains(sources))
        && !LIBRARIES.iter().any(|library| file.starts_with(library))
        && !WRAPPERS.iter().any(|wrapper| name.starts_with(wrapper))
        && !is_go_sync(name)
}

/// Last component of a path.
pub(crate) fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Without what Rust puts before the path of a method of a trait: `<&std::sync::Mutex<T> as …>::…`.
fn bare(name: &str) -> &str {
    name.trim_start_matches(['<', '&', '*'])
}

/// A function of Go's standard library: by its package and its file, as an application may well have a package `log`, and as a
/// function of the runtime may be called by another package's name.
fn is_go_standard(frame: &StackFrame) -> bool {
    let (Some(name), Some(source)) = (frame.function.as_deref(), frame.file.as_deref()) else {
        return false;
    };
    // Where Go was installed, or, with -trimpath, nothing but the package.
    let within = source.rsplit_once("/src/").map_or(source, |(_, within)| within);
    // `net/http.(*Transport).dial`
    let first = |path: &str| {
        let part = path.split(['/', '.']).next().unwrap_or_default();
        GO_STANDARD.contains(&part)
    };
    // Wrappers, such as those of method values, have no source.
    if source == "<autogenerated>" {
        return first(name);
    }
    let is_source = [".go", ".s"].iter().any(|kind| within.ends_with(kind));
    is_source && first(within) && first(name)
}

/// A Go function without the path of its package: `http.(*Transport).dial`. Other names are as they are.
pub(crate) fn without_path(name: &str) -> &str {
    let path = name
        .find(['(', '['])
        .map_or(name, |at| name.get(..at).unwrap_or(name));
    let spaced = path.contains(' ') || path.contains("::") || path.starts_with('/');
    match path.rfind('/') {
        Some(at) if !spaced => name
            .get(at + 1..)
            .filter(|rest| rest.starts_with(char::is_alphanumeric))
            .unwrap_or(name),
        _ => name,
    }
}

/// Go's `sync` and what lies beneath it; a package of the application may well be called `sync…` too.
fn is_go_sync(name: &str) -> bool {
    [
        "sync.(*",
        "sync.runtime_",
        "internal/sync.",
        "internal/poll.",
        "internal/runtime/",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// At most `max` characters: both ends, with `…` between them.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max {
        return text.to_owned();
    }
    let tail = max.saturating_sub(1) / 2;
    let head = max.saturating_sub(1) - tail;
    text.chars()
        .take(head)
        .chain(['…'])
        .chain(text.chars().skip(count - tail))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(frames: &[(&str, &str)]) -> Vec<StackFrame> {
        let frame = |&(function, module): &(&str, &str)| StackFrame {
            function: (!function.is_empty()).then(|| function.to_owned()),
            module: Some(module.to_owned()),
            file: None,
            line: None,
            inlined: false,
            address: "0x1".to_owned(),
            offset: None,
        };
        frames.iter().map(frame).collect()
    }

    fn chosen(frames: &[(&str, &str)]) -> Option<String> {
        app_function(&stack(frames)).and_then(|frame| frame.function.clone())
    }

    #[test]
    fn inlined_generics_of_the_library_are_known_by_their_file() {
        let mut frames = stack(&[("lock<u64>", "shop"), ("lookup_price", "shop")]);
        frames[0].file = Some("/rustc/0123/library/std/src/sync/poison/mutex.rs".to_owned());
        assert_eq!(
            app_function(&frames).and_then(|f| f.function.as_deref()),
            Some("lookup_price")
        );
    }

    #[test]
    fn go_s_library_is_passed_over_where_there_is_anything_else() {
        let of = |name: &str, file: &str| StackFrame {
            function: Some(name.to_owned()),
            module: Some("/app".to_owned()),
            file: Some(file.to_owned()),
            line: Some(7),
            inlined: false,
            address: "0x1".to_owned(),
            offset: None,
        };
        let park = of("runtime.gopark", "/usr/lib/go/src/runtime/proc.go");
        let read = of(
            "net/http.(*persistConn).readLoop",
            "/usr/lib/go/src/net/http/transport.go",
        );
        let trimmed = of("net/http.Get", "net/http/client.go");
        let own = of("log.Write", "/home/shop/log/write.go");
        let stack = [park, read, trimmed, own];
        let name = |frames: &[StackFrame]| app_function(frames).and_then(|frame| frame.function.clone());
        assert_eq!(name(&stack).as_deref(), Some("log.Write"));
        assert_eq!(
            name(&stack[..3]).as_deref(),
            Some("net/http.(*persistConn).readLoop")
        );
        assert_eq!(name(&stack[..1]).as_deref(), Some("runtime.gopark"));
        // By another package's name, for that package.
        let signals = of("os/signal.signal_recv", "runtime/sigqueue.go");
        let call = of(
            "runtime/internal/syscall.Syscall6",
            "runtime/internal/syscall/asm_linux_amd64.s",
        );
        assert!(!is_app(&signals) && !is_app(&call));
    }

    #[test]
    fn paths_of_go_packages_are_left_out() {
        for (whole, short) in [
            ("github.com/a/b.(*T[...]).Run.func1", "b.(*T[...]).Run.func1"),
            ("net/http.HandlerFunc.ServeHTTP", "http.HandlerFunc.ServeHTTP"),
            ("main.main", "main.main"),
            ("std::fs::read", "std::fs::read"),
            ("operator/(A const&, B)", "operator/(A const&, B)"),
            ("a<b>::c(d/e)", "a<b>::c(d/e)"),
        ] {
            assert_eq!(without_path(whole), short);
        }
    }

    #[test]
    fn runtimes_and_wrappers_are_passed_over() {
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let cases: [(&[(&str, &str)], &str); 7] = [
            (
                &[
                    ("__lll_lock_wait", libc),
                    ("std::mutex::lock", "/app"),
                    ("serve", "/app"),
                ],
                "serve",
            ),
            (
                &[
                    ("syscall", libc),
                    ("std::sys::sync::mutex::futex::Mutex::lock_contended", "/app"),
                    ("<std::sync::Mutex<T> as Lock>::lock", "/app"),
                    ("shop::cart", "/app"),
                ],
                "shop::cart",
            ),
            (
                &[
                    ("parking_lot::raw_mutex::RawMutex::lock_slow", "/app"),
                    ("hot", "/app"),
                ],
                "hot",
            ),
            (
                &[
                    ("runtime.futex", "/go"),
                    ("sync.(*Mutex).Lock", "/go"),
                    ("main.get", "/go"),
                ],
                "main.get",
            ),
            (&[("syncer.Run", "/go"), ("main.main", "/go")], "syncer.Run"),
            (
                &[
                    ("v8::base::ConditionVariable::Wait", "/usr/bin/node"),
                    ("Builtins_AtomicsWait", "/usr/bin/node"),
                    ("waitForCache", ""),
                ],
                "waitForCache",
            ),
            (
                &[("SSL_read", "/usr/lib/libcrypto.so.3"), ("main", "/app")],
                "SSL_read",
            ),
        ];
        for (frames, function) in cases {
            assert_eq!(chosen(frames).as_deref(), Some(function));
        }
    }

    #[test]
    fn without_application_the_leaf_answers() {
        assert_eq!(
            chosen(&[("poll", "libc.so.6"), ("start_thread", "libc.so.6")]).as_deref(),
            Some("poll")
        );
        assert_eq!(app_function(&[]), None);
        assert_eq!(
            app_index(&stack(&[("poll", "libc.so.6"), ("", "/app")])),
            1,
            "no name, but the application's"
        );
    }
}
