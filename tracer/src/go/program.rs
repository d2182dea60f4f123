//! The file of a Go program: its functions, their code, and where it was loaded.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use rustc_hash::FxHashMap;

use crate::{
    proc::maps,
    stacks::{
        elf::{Elf, Image as _},
        pclntab::{Pclntab, Step},
    },
};

/// Code of one function read.
const MAX_FUNCTION: u64 = 64 << 10;

/// A Go program that a process runs. Addresses are those of the process.
pub struct Program {
    file: File,
    elf: Elf,
    table: Pclntab,
    /// What was added to the file's addresses.
    bias: u64,
    /// The runtime's functions by name: (first address, end) in the file.
    functions: FxHashMap<Box<str>, (u64, u64)>,
}

impl Program {
    /// Of a process. The error says why it is none, or what is missing.
    pub fn open(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/exe");
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let elf = Elf::parse(&file).context("the program is no x86-64 ELF file")?;
        let table =
            Pclntab::read(&file, &elf).context("the program has no Go table of functions (.gopclntab)")?;
        let bias = bias(pid, &file, &elf)?;
        let mut functions = FxHashMap::default();
        table.each_function(|name, start, end| {
            if let Ok(name) = std::str::from_utf8(name)
                && is_runtime(name)
            {
                functions.entry(name.into()).or_insert((start, end));
            }
        });
        ensure!(
            !functions.is_empty(),
            "the program's table names no function of Go's runtime"
        );
        Ok(Self {
            file,
            elf,
            table,
            bias,
            functions,
        })
    }

    /// Name of the function that begins at an address; None when none does.
    #[must_use]
    pub fn begins(&self, address: u64) -> Option<String> {
        let address = address.wrapping_sub(self.bias);
        let (start, _) = self.table.bounds(address)?;
        (start == address).then(|| self.table.function_name(start))?
    }

    /// The file that was read, whatever the process runs by now.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// First address of a function of the runtime.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u64> {
        Some(self.functions.get(name)?.0.wrapping_add(self.bias))
    }

    /// The code of a function of the runtime, and its first address.
    #[must_use]
    pub fn code(&self, name: &str) -> Option<(Vec<u8>, u64)> {
        let &(start, end) = self.functions.get(name)?;
        self.read(start, end)
    }

    /// The code of the function that holds an address, and its first address.
    #[must_use]
    pub fn code_at(&self, pc: u64) -> Option<(Vec<u8>, u64)> {
        let (start, end) = self.table.bounds(pc.wrapping_sub(self.bias))?;
        self.read(start, end)
    }

    /// Code of the file between two addresses, and where it was loaded.
    fn read(&self, start: u64, end: u64) -> Option<(Vec<u8>, u64)> {
        let (offset, have) = self.elf.file_offset(start)?;
        let len = end.checked_sub(start)?.min(have).min(MAX_FUNCTION);
        Some((self.file.read_at(offset, len)?, start.wrapping_add(self.bias)))
    }

    /// Names of the runtime's functions that begin so: a function and the closures in it.
    pub fn functions_like<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.functions
            .keys()
            .map(|name| &**name)
            .filter(move |name| name.starts_with(prefix))
    }

    /// Offset in the file of an address of code: what a uprobe is attached to.
    #[must_use]
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        Some(self.elf.file_offset(address.wrapping_sub(self.bias))?.0)
    }

    /// How the runtime walks on from an address.
    pub(crate) fn step(&self, pc: u64) -> Option<Step> {
        let step = self.table.step(pc.wrapping_sub(self.bias))?;
        Some(Step {
            start: step.start.wrapping_add(self.bias),
            ..step
        })
    }

    /// Name of the function at an address, without what was inlined there.
    #[must_use]
    pub fn name(&self, pc: u64) -> Option<String> {
        self.table.function_name(pc.wrapping_sub(self.bias))
    }

    /// Names of the functions at an address, what was inlined into others first.
    #[must_use]
    pub fn names(&self, pc: u64) -> Vec<String> {
        let code = self.table.code(&self.file, &self.elf, pc.wrapping_sub(self.bias));
        let named = code.map(|code| code.frames.into_iter().map(|frame| frame.name).collect());
        named.unwrap_or_else(|| self.name(pc).into_iter().collect())
    }

    /// Innermost file and line at an address.
    #[must_use]
    pub fn line(&self, pc: u64) -> Option<(String, u32)> {
        let code = self
            .table
            .code(&self.file, &self.elf, pc.wrapping_sub(self.bias))?;
        let frame = code.frames.into_iter().next()?;
        Some((frame.file?, frame.line?))
    }

    /// Where the runtime's description of the program lies (`runtime.firstmoduledata`).
    #[must_use]
    pub fn described(&self) -> Option<u64> {
        Some(self.table.described()?.wrapping_add(self.bias))
    }
}

/// What globals and probes are found by.
fn is_runtime(name: &str) -> bool {
    [
        "runtime.",
        "sync.",
        "internal/sync.",
        "net.(*sysDialer).",
        "net/http.(*Transport).",
        "database/sql.(*DB).",
    ]
    .iter()
    .any(|package| name.starts_with(package))
}

/// Where the process has the file, which may have been deleted or replaced since.
fn bias(pid: u32, file: &File, elf: &Elf) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = file
        .metadata()
        .context("cannot look at the program's file")?
        .ino();
    let maps = maps::read(pid).with_context(|| format!("cannot read /proc/{pid}/maps"))?;
    maps.iter()
        .filter(|map| map.exec && map.inode == inode)
        .find_map(|map| elf.bias(map.start, map.offset, true))
        .context("the program's file is not mapped")
}
