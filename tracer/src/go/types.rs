//! Layouts of the runtime's own structures, from the type descriptors that every Go program carries for reflection.
//!
//! The runtime makes its goroutines, machines and waiters by `new`, which needs a descriptor of each: with names and offsets of the
//! fields, in stripped programs too. So nothing about their layout has to be known beforehand. Described by `internal/abi/type.go`
//! of Go's sources. All of it is hostile input: what does not fit together is not found.

use rustc_hash::FxHashMap;

use super::memory::Memory;
use crate::stacks::elf::{u32_at, u64_at};

/// Bytes of descriptors searched; those of the largest programs are a quarter of this.
pub(crate) const MAX_TYPES: u64 = 64 << 20;
/// Fields of one structure.
const MAX_FIELDS: usize = 512;
/// A field's name is shorter.
const MAX_NAME: usize = 128;
/// In a descriptor: its size, flags, kind and name.
const SIZE: usize = 0;
const FLAGS: usize = 20;
const KIND: usize = 23;
const NAME: usize = 40;
/// In a structure's: the package of its fields that are not exported, and its fields.
const PACKAGE: usize = 48;
const FIELDS: u64 = 56;
/// The kind that is a structure, and what else shares its byte.
const STRUCT: u8 = 25;
const KIND_MASK: u8 = 0x1f;
/// The name is that of a pointer to the type: one character longer.
const EXTRA_STAR: u8 = 2;

/// One structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Bytes.
    pub size: u64,
    /// Path of the package that its fields belong to; empty when all of them are exported.
    pub package: String,
    /// Address of its descriptor.
    pub descriptor: u64,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: u64,
    descriptor: u64,
}

impl Struct {
    /// Offset of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<usize> {
        let field = self.fields.iter().find(|field| field.name == name)?;
        usize::try_from(field.offset).ok()
    }

    /// Address of the descriptor of a field's type.
    #[must_use]
    pub fn type_of(&self, name: &str) -> Option<u64> {
        Some(self.fields.iter().find(|field| field.name == name)?.descriptor)
    }
}

/// The descriptors of a program.
pub(crate) struct Types<'m, M: ?Sized> {
    memory: &'m M,
    /// Where they begin.
    start: u64,
    bytes: Vec<u8>,
    /// Offsets of fields are stored doubled, as before Go 1.19.
    doubled: bool,
}

impl<'m, M: Memory + ?Sized> Types<'m, M> {
    /// Those in a range of memory; None when it does not hold the runtime's.
    pub(crate) fn read(memory: &'m M, start: u64, end: u64) -> Option<Self> {
        let len = end
            .checked_sub(start)
            .filter(|&len| len > 0 && len <= MAX_TYPES)?;
        let bytes = memory.read(start, usize::try_from(len).ok()?)?;
        let mut types = Self {
            memory,
            start,
            bytes,
            doubled: false,
        };
        // A goroutine's saved registers: the stack pointer first, then the program counter.
        let gobuf = types.find(&["runtime.gobuf"]).remove("runtime.gobuf")?;
        match (gobuf.field("sp"), gobuf.field("pc")) {
            (Some(0), Some(8)) => {}
            (Some(0), Some(16)) => types.doubled = true,
            _ => return None,
        }
        Some(types)
    }

    /// Structures by name, such as `runtime.g`; those that are not found are not in the answer.
    pub(crate) fn find<'n>(&self, wanted: &[&'n str]) -> FxHashMap<&'n str, Struct> {
        let mut found = FxHashMap::default();
        self.each(wanted, |name, structure| {
            found.entry(name).or_insert(structure);
        });
        found
    }

    /// Structures by the path of their package and by name, as `("database/sql", "sql.DB")`: other packages may be called the same.
    pub(crate) fn find_in<'n>(&self, wanted: &[(&'n str, &'n str)]) -> FxHashMap<(&'n str, &'n str), Struct> {
        let names: Vec<&str> = wanted.iter().map(|&(_, name)| name).collect();
        let mut found = FxHashMap::default();
        self.each(&names, |name, structure| {
            if let Some(&key) = wanted.iter().find(|key| *key == &(&*structure.package, name)) {
                found.entry(key).or_insert(structure);
            }
        });
        found
    }

    /// Calls with every structure that has one of these names.
    fn each<'n>(&self, wanted: &[&'n str], mut f: impl FnMut(&'n str, Struct)) {
        // Where the name of a pointer to each lies, which the descriptor points to.
        let mut places: FxHashMap<u32, &'n str> = FxHashMap::default();
        for star in memchr_all(&self.bytes, b'*') {
            for &name in wanted {
                let text = self.bytes.get(star + 1..star + 1 + name.len());
                // Flags, then the length, which is below 128.
                let before = star.checked_sub(2).and_then(|at| self.bytes.get(at..star));
                if text == Some(name.as_bytes())
                    && before.is_some_and(|b| b[0] < 0x10 && usize::from(b[1]) == name.len() + 1)
                {
                    places.insert((star - 2) as u32, name);
                }
            }
        }
        for at in (0..self.bytes.len().saturating_sub(FIELDS as usize + 24)).step_by(8) {
            let Some(&name) = u32_at(&self.bytes, at + NAME).and_then(|name| places.get(&name)) else {
                continue;
            };
            let starred = self
                .bytes
                .get(at + FLAGS)
                .is_some_and(|flags| flags & EXTRA_STAR != 0);
            if starred && let Some(structure) = self.structure(self.start + at as u64) {
                f(name, structure);
            }
        }
    }

    /// The structure that a descriptor describes.
    pub(crate) fn structure(&self, descriptor: u64) -> Option<Struct> {
        let bytes = self.memory.read(descriptor, FIELDS as usize + 24)?;
        if bytes.get(KIND)? & KIND_MASK != STRUCT {
            return None;
        }
        let size = u64_at(&bytes, SIZE)?;
        let (list, count) = (
            u64_at(&bytes, FIELDS as usize)?,
            usize::try_from(u64_at(&bytes, FIELDS as usize + 8)?).ok()?,
        );
        if count > MAX_FIELDS || size > 1 << 20 {
            return None;
        }
        let fields = self.memory.read(list, count * 24)?;
        let field = |entry: &[u8]| {
            let offset = u64_at(entry, 16)? >> u32::from(self.doubled);
            Some(Field {
                name: self.name(u64_at(entry, 0)?)?,
                offset,
                descriptor: u64_at(entry, 8)?,
            })
            // Unless doubled ones are about to be found out.
            .filter(|_| offset <= 2 * size)
        };
        let fields = fields.chunks_exact(24).map(field).collect::<Option<_>>()?;
        let package = match u64_at(&bytes, PACKAGE)? {
            0 => String::new(),
            package => self.name(package)?,
        };
        Some(Struct {
            size,
            package,
            descriptor,
            fields,
        })
    }

    fn name(&self, address: u64) -> Option<String> {
        let within = address
            .checked_sub(self.start)
            .and_then(|at| usize::try_from(at).ok());
        let held = within.and_then(|at| self.bytes.get(at..at.checked_add(2 + MAX_NAME)?));
        let bytes = match held {
            Some(bytes) => bytes.to_vec(),
            None => self.memory.read(address, 2 + MAX_NAME)?,
        };
        let length = usize::from(*bytes.get(1)?);
        let name = bytes.get(2..2 + length).filter(|_| length <= MAX_NAME)?;
        String::from_utf8(name.to_vec()).ok()
    }
}

fn memchr_all(bytes: &[u8], wanted: u8) -> impl Iterator<Item = usize> {
    bytes
        .iter()
        .enumerate()
        .filter(move |&(_, &byte)| byte == wanted)
        .map(|(at, _)| at)
}
