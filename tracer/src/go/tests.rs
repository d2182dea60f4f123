//! Against programs of this machine's Go compilers: what they say of themselves.
use super::*;
struct Nobody;
impl snapshot::Watch for Nobody {
    fn changed(&mut self, _: &snapshot::Goroutine, _: &snapshot::Goroutine) {}
}
#[test]
fn dump() {
    let Ok(pid) = std::env::var("CTRACE_GO_PID") else {
        return;
    };
    let pid: u32 = pid.parse().unwrap();
    let begun = std::time::Instant::now();
    let program = program::Program::open(pid).unwrap();
    println!("open {:?}", begun.elapsed());
    let runtime = runtime::Runtime::find(&memory::Live::new(pid), &program).unwrap();
    println!("find {:?} {:x?}", begun.elapsed(), runtime.layout);
    println!("{:?}", runtime.reasons);
    let mut reader = snapshot::Reader::new(memory::Live::new(pid), program, runtime);
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let tally = reader.take(1, &mut Nobody);
        println!("{:?} {tally:?}", begun.elapsed());
    }
    if reader.groups().len() > 50 {
        return;
    }
    let mut counts = std::collections::BTreeMap::new();
    for (_, g) in reader.goroutines() {
        *counts.entry(g.group).or_insert(0) += 1;
    }
    for (group, count) in counts {
        let group = &reader.groups()[group as usize];
        let reason = group
            .status
            .reason()
            .map(|r| reader.runtime().reasons[usize::from(r)].clone());
        println!(
            "{count} {:?} {reason:?} by {:?} {:?}",
            group.status,
            reader.program().name(group.creator.wrapping_sub(1)),
            reader.program().line(group.creator.wrapping_sub(1))
        );
        for &(pc, back) in group.frames.iter().take(12) {
            println!(
                "    {:?} {:?}",
                reader.program().name(pc),
                reader.program().line(pc - u64::from(back))
            );
        }
    }
}

#[test]
fn dump_sites() {
    let Ok(pid) = std::env::var("CTRACE_GO_PID") else {
        return;
    };
    let pid: u32 = pid.parse().unwrap();
    let program = program::Program::open(pid).unwrap();
    let memory = memory::Live::new(pid);
    let begun = std::time::Instant::now();
    println!(
        "{:x?} {:?}",
        sites::Sites::find(&memory, &program),
        begun.elapsed()
    );
    println!(
        "{:?} {:?}",
        locks::LockLayout::find(&memory, &program),
        begun.elapsed()
    );
}
