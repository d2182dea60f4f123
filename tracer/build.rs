//! Embeds the eBPF object.
fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-env-changed=CTRACE_EBPF_OBJECT");
    if let Ok(path) = std::env::var("CTRACE_EBPF_OBJECT") {
        println!("cargo::rerun-if-changed={path}");
        std::fs::copy(path, format!("{out}/ctrace.bpf.o")).expect("copy");
    }
}
