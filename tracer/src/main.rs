//! ctrace
use tracer::capture::*;
fn main() -> anyhow::Result<()> {
    env_logger::init();
    let pid = std::env::args().nth(1).unwrap().parse()?;
    let t = std::time::Instant::now();
    let mut c = Capture::start(&Request{targets: vec![pid], collectors: plan::Collectors::ALL, follow:false, ring_bytes: 16<<20})?;
    eprintln!("attached {:?} unattached {:?}", t.elapsed(), c.unattached());
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        c.drain(100000, |r| match decode::decode(r) { Some(decode::Event::SwitchOut(s, st)) => println!("{s:?} ip {:x} len {} fault {}", st.regs.ip, st.bytes.len(), st.regs.fault), other => println!("{other:.300?}") });
    }
    println!("{:?}", c.counters()?);
    for p in c.probes() { println!("{p:?}"); }
    println!("{:x?}", c.tasks()?);
    Ok(())
}
