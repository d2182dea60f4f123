//! Any processes, against gdb: `CTRACE_TEST_PIDS="12 34" cargo test -p tracer --lib survey -- --ignored --nocapture`.

use super::rig;
use crate::stacks::{End, Stacks, Symbolizer};

/// Prints, per process, how many threads end well and how many frames gdb agrees with.
#[test]
#[ignore = "needs CTRACE_TEST_PIDS, processes whose threads are blocked"]
fn survey() {
    let pids = std::env::var("CTRACE_TEST_PIDS").unwrap();
    for tgid in pids.split_whitespace().map(|p| p.parse::<u32>().unwrap()) {
        let (mut stacks, mut symbolizer) = (Stacks::new(), Symbolizer::new());
        let truth = rig::gdb(tgid).unwrap_or_default();
        let threads = rig::threads(tgid, 64 << 10);
        let (mut complete, mut equal, mut of) = (0, 0, 0);
        for (tid, (regs, bytes)) in &threads {
            let unwound = stacks.unwind(tgid, regs, bytes);
            complete += usize::from(unwound.end == End::Complete);
            let pcs: Vec<_> = stacks.frames(unwound.id).iter().map(|f| f.address).collect();
            let Some(truth) = truth.get(tid) else { continue };
            let same = pcs.iter().zip(truth).take_while(|(a, b)| a == b).count();
            (equal, of) = (equal + same, of + truth.len());
            if same < truth.len() || unwound.end != End::Complete {
                let words = symbolizer.resolve(&stacks, unwound.id);
                let names: Vec<_> = words
                    .iter()
                    .filter(|w| !w.inlined)
                    .map(|w| w.function.as_deref().unwrap_or("?"))
                    .collect();
                println!(
                    "  {tid}: {:?}, {} of gdb's {}, {names:?}",
                    unwound.end,
                    same,
                    truth.len()
                );
                println!("    gdb {:x?}", truth.get(same..same + 3));
            }
        }
        let name = std::fs::read_to_string(format!("/proc/{tgid}/comm")).unwrap_or_default();
        println!(
            "{}: {} threads, {complete} complete, {equal} of {of} frames as gdb, {:?}",
            name.trim(),
            threads.len(),
            stacks.failures()
        );
    }
}
