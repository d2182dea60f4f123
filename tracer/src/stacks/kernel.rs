//! Names of kernel functions.

use std::fs::File;
use std::io::Read as _;

/// Bytes of kallsyms read: a kernel with `KALLSYMS_ALL` and many modules has about 15 MB.
const MAX_TEXT: u64 = 128 << 20;

/// Text symbols of `/proc/kallsyms`, read when first asked.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    /// (address, name), by address.
    symbols: Option<Vec<(u64, Box<str>)>>,
}

impl KernelSymbols {
    /// Reads nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The function that holds an address. None without `CAP_SYSLOG`, which shows all addresses as 0.
    pub fn name(&mut self, address: u64) -> Option<String> {
        let symbols = self.symbols.get_or_insert_with(|| {
            let mut text = Vec::new();
            // A kernel without kallsyms leaves addresses nameless, which is what None says.
            let file = File::open("/proc/kallsyms");
            let _ = file.and_then(|f| f.take(MAX_TEXT).read_to_end(&mut text));
            parse(&text)
        });
        let at = symbols.partition_point(|s| s.0 <= address).checked_sub(1)?;
        symbols.get(at).map(|s| s.1.to_string())
    }
}

/// Text symbols by address; of several at one address the first.
fn parse(text: &[u8]) -> Vec<(u64, Box<str>)> {
    let line = |line: &[u8]| {
        let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let address = u64::from_str_radix(fields.next()?, 16).ok().filter(|&a| a != 0)?;
        let text = matches!(fields.next()?, "t" | "T" | "w" | "W");
        text.then_some((address, fields.next()?.into()))
    };
    let mut symbols: Vec<_> = text.split(|&b| b == b'\n').filter_map(line).collect();
    symbols.sort_by_key(|s: &(u64, Box<str>)| s.0);
    symbols.dedup_by_key(|s| s.0);
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_by_address() {
        let text = b"ffff1000 T schedule\nffff0800 t io_schedule\nffff2000 D jiffies\n0 T hidden\nbad\nffff3000 t [m] x\n";
        let mut symbols = KernelSymbols {
            symbols: Some(parse(text)),
        };
        assert_eq!(symbols.name(0xffff_0801).as_deref(), Some("io_schedule"));
        assert_eq!(symbols.name(0xffff_2fff).as_deref(), Some("schedule"));
        assert_eq!(symbols.name(0x10), None);
    }
}
