//! The running kernel's BTF: read once, in one pass, for the few types that are needed. Parsed whole it takes 25 MB and, on the
//! development machine, longer than all the rest of attaching.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use aya::{Btf, EbpfLoader};
use object::Endianness;

/// Where kernels keep their BTF.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// `struct btf_type`.
const TYPE: usize = 12;

/// Kinds of types that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A struct with members.
    Struct = 4,
    /// What `tp_btf` programs attach to: `btf_trace_NAME`.
    Typedef = 8,
    /// What iterators (`bpf_iter_NAME`) and trampolines attach to.
    Func = 12,
}

/// The types that were looked for.
#[derive(Debug, Default)]
pub struct KernelBtf {
    /// By kind and name; several types may share both.
    ids: BTreeMap<(Kind, String), Vec<u32>>,
    /// Struct and member → bytes from the struct's start.
    members: BTreeMap<(String, String), u32>,
}

impl KernelBtf {
    /// Reads the kernel's, for these types; all members of the structs among them are known afterwards.
    pub fn read(wanted: &[(Kind, &str)]) -> Result<Self> {
        let bytes = fs::read(BTF).with_context(|| {
            format!("cannot read {BTF}: ctrace needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (most distributions' are)")
        })?;
        Self::parse(&bytes, wanted).with_context(|| format!("{BTF} is malformed"))
    }

    fn parse(bytes: &[u8], wanted: &[(Kind, &str)]) -> Result<Self> {
        let (mut types, strings) = sections(bytes).context("bad header")?;
        let mut found = Self::default();
        let mut id = 0;
        while !types.is_empty() {
            id += 1;
            let entry = types.get(..TYPE).context("cut short")?;
            let (name, info) = (u32_at(entry, 0), u32_at(entry, 4));
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let size = TYPE + trailing(kind, count).with_context(|| format!("type {id} has kind {kind}"))?;
            let whole = types.get(..size).context("cut short")?;
            if let Some(&(kind, name)) = wanted
                .iter()
                .find(|(wanted, text)| *wanted as u32 == kind && is(strings, name, text))
            {
                found.ids.entry((kind, name.to_owned())).or_default().push(id);
                if kind == Kind::Struct {
                    found.add_members(name, whole, info, strings);
                }
            }
            types = &types[size..];
        }
        Ok(found)
    }

    fn add_members(&mut self, owner: &str, whole: &[u8], info: u32, strings: &[u8]) {
        for member in whole[TYPE..].chunks_exact(12) {
            let Some(name) = text(strings, u32_at(member, 0)) else {
                continue;
            };
            let bits = u32_at(member, 8);
            // With the flag, the upper byte is the size of a bit field.
            let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
            self.members
                .entry((owner.to_owned(), name.to_owned()))
                .or_insert(bits / 8);
        }
    }

    /// Byte offset of a direct member of a struct that was looked for.
    #[must_use]
    pub fn member(&self, owner: &str, field: &str) -> Option<u32> {
        self.members.get(&(owner.to_owned(), field.to_owned())).copied()
    }

    /// Whether the kernel has a type.
    #[must_use]
    pub fn has(&self, kind: Kind, name: &str) -> bool {
        self.ids.contains_key(&(kind, name.to_owned()))
    }

    /// For aya, which looks a type up by its name and passes its number to the kernel: what was found, at the same numbers, and
    /// nothing between.
    pub fn for_aya(&self) -> Result<Btf> {
        Btf::parse(&self.bytes(), Endianness::default()).context("aya does not read the BTF made for it")
    }

    fn bytes(&self) -> Vec<u8> {
        let mut named: BTreeMap<u32, (Kind, &str)> = BTreeMap::new();
        for ((kind, name), ids) in self.ids.iter().filter(|((kind, _), _)| *kind != Kind::Struct) {
            named.extend(ids.iter().map(|&id| (id, (*kind, name.as_str()))));
        }
        let last = named.last_key_value().map_or(0, |(&id, _)| id as usize);
        // A type of zeros is the kind "unknown", which has no name.
        let mut types = vec![0; last * TYPE];
        let mut strings = vec![0];
        for (id, (kind, name)) in named {
            let entry = &mut types[(id as usize - 1) * TYPE..][..TYPE];
            entry[..4].copy_from_slice(&(strings.len() as u32).to_ne_bytes());
            entry[4..8].copy_from_slice(&((kind as u32) << 24).to_ne_bytes());
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        let mut bytes = Vec::with_capacity(HEADER + types.len() + strings.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [HEADER, 0, types.len(), types.len(), strings.len()] {
            bytes.extend_from_slice(&(word as u32).to_ne_bytes());
        }
        bytes.append(&mut types);
        bytes.append(&mut strings);
        bytes
    }
}

/// A loader that has not parsed the kernel's BTF: [`EbpfLoader::new`] does, whole, unless the file cannot be opened. Nothing in
/// the object is relocated by it. Must be called while the process has one thread, as others could open nothing meanwhile.
#[must_use]
pub fn loader() -> EbpfLoader<'static> {
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) fills the struct, or fails.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) } == 0;
    let none = libc::rlimit {
        rlim_cur: 0,
        ..before
    };
    if known {
        // SAFETY: setrlimit(2) reads the struct; only the soft limit changes, and back again below.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
    }
    let loader = EbpfLoader::new();
    if known {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before) };
    }
    loader
}

/// Types and strings.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let header = bytes.get(..HEADER).context("cut short")?;
    ensure!(
        header[..2] == MAGIC.to_ne_bytes(),
        "not this machine's byte order"
    );
    let word = |at| u32_at(header, at) as usize;
    let section = |at: usize, len: usize| {
        let start = word(4).checked_add(at)?;
        bytes.get(start..start.checked_add(len)?)
    };
    section(word(8), word(12))
        .zip(section(word(16), word(20)))
        .context("sections lie outside")
}

/// Bytes that follow a `struct btf_type`, by `include/uapi/linux/btf.h`.
fn trailing(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Nothing ([`KernelBtf::bytes`] has it between types), pointers, forwards, typedefs, qualifiers, functions, floats, type tags.
        0 | 2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structs, unions, sections, 64-bit enums.
        4 | 5 | 15 | 19 => 12 * count,
        // Enums, prototypes.
        6 | 13 => 8 * count,
        _ => return None,
    })
}

fn is(strings: &[u8], at: u32, wanted: &str) -> bool {
    let rest = strings.get(at as usize..).unwrap_or_default();
    rest.get(wanted.len()) == Some(&0) && rest.starts_with(wanted.as_bytes())
}

fn text(strings: &[u8], at: u32) -> Option<&str> {
    let rest = strings.get(at as usize..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// A word inside a slice whose length was checked.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: [(Kind, &str); 4] = [
        (Kind::Struct, "task_struct"),
        (Kind::Typedef, "btf_trace_sched_switch"),
        (Kind::Func, "bpf_iter_task"),
        (Kind::Func, "no_such_function"),
    ];

    /// Another reader of the kernel's BTF finds the same numbers and offsets; what aya gets has them too.
    #[test]
    fn numbers_are_the_kernels() {
        let kernel = KernelBtf::read(&WANTED).unwrap();
        let other = btf_rs::Btf::from_file(BTF).unwrap();
        for ((_, name), ids) in &kernel.ids {
            let mut others = other.resolve_ids_by_name(name).unwrap();
            others.retain(|id| ids.contains(id));
            assert_eq!(&others, ids, "{name}");
        }
        assert_eq!(kernel.ids.len(), WANTED.len() - 1);
        assert!(!kernel.has(Kind::Func, "no_such_function"));
        let pid = other
            .resolve_types_by_name("task_struct")
            .unwrap()
            .iter()
            .find_map(|owner| {
                let btf_rs::Type::Struct(owner) = owner else {
                    return None;
                };
                let named =
                    |member: &&btf_rs::Member| other.resolve_name(*member).is_ok_and(|name| name == "pid");
                Some(owner.members.iter().find(named)?.bit_offset() / 8)
            });
        assert!(pid.is_some());
        assert_eq!(kernel.member("task_struct", "pid"), pid);
        assert_eq!(kernel.member("task_struct", "no_such_member"), None);

        let small = KernelBtf::parse(&kernel.bytes(), &WANTED).unwrap();
        assert_eq!(small.ids.len(), WANTED.len() - 2, "without the struct");
        assert!(small.ids.iter().all(|(name, ids)| kernel.ids[name] == *ids));
        assert!(kernel.for_aya().is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), cut in 0usize..200) {
            let mut bytes = bytes;
            let _ = KernelBtf::parse(&bytes, &WANTED);
            // A sound header before arbitrary types.
            if bytes.len() >= HEADER {
                let len = (bytes.len() - HEADER) as u32;
                let types = len.saturating_sub(cut as u32);
                bytes[..4].copy_from_slice(&[0x9f, 0xeb, 1, 0]);
                for (at, word) in [(4, 24), (8, 0), (12, types), (16, types), (20, len - types)] {
                    bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
                }
                let _ = KernelBtf::parse(&bytes, &WANTED);
            }
        }
    }
}
