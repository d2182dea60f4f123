//! Files that code comes from, shared by all processes that map them.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::bottom::{Bottom, Bottoms};
use super::cfi::Cfi;
use super::code;
use super::elf::{Elf, Image as _, Section, Segment};
use super::instructions::MAX_LENGTH;
use super::pclntab::Pclntab;
use super::row::{Row, Rows, Rule};
use crate::proc::maps::Map;

/// Bytes of Go programs' tables that are kept to walk on from where their code stands, of all together; more are done without.
const MAX_GO_TABLES: usize = 64 << 20;
/// Files held open. Each costs a descriptor for the life of the run.
const MAX_MODULES: usize = 1 << 14;
/// Unwind sections held in memory, of all files together.
const MAX_CFI_BYTES: usize = 1 << 30;
/// Addresses whose row is kept, per file; when full the cache starts anew.
const MAX_CACHED: usize = 1 << 17;
/// `mov $15, %rax; syscall`: what a signal handler returns to, and how it is known without CFI.
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// A function's own code before a call in it is searched so far for its beginning.
const MAX_BODY: u64 = 16 << 10;
/// Bytes of code read at a time.
const BLOCK: u64 = 256;

/// A file (or the vdso) that is mapped by some process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub(super) u32);

/// How to go on from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// By the row of that number.
    Row(u32),
    /// There are no rules for it.
    None,
    /// There are, but they are not understood.
    Bad,
}

/// Who told of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `/proc`, just now.
    Proc,
    /// The kernel, when it was made: something else may be there now.
    Heard,
}

/// One file.
pub(super) struct Module {
    pub(super) path: Arc<str>,
    pub(super) file: File,
    pub(super) elf: Elf,
    cfi: RefCell<Option<Cfi>>,
    bottoms: OnceCell<Bottoms>,
    go_frames: OnceCell<Option<Pclntab>>,
    rows: FxHashMap<u64, Lookup>,
    derived: FxHashMap<u64, Option<u32>>,
    /// Whether a call (by where it returns to) can lead to code without rules.
    calls: FxHashMap<(u64, u64), bool>,
}

impl Module {
    /// A path that opens the file even when it has been replaced or deleted, as long as we run.
    pub(super) fn open_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Code without unwind rules that is known to keep frame pointers to the bottom: Go's, and files without any rules.
    pub(super) fn keeps_pointers(&self) -> bool {
        self.elf.is_go() || self.elf.section(".eh_frame").is_none()
    }

    /// Whether a virtual address lies in a function of Go's runtime at which stacks end.
    pub(super) fn bottom(&self, vaddr: u64) -> Option<Bottom> {
        if !self.elf.is_go() {
            return None;
        }
        // The table is let go again: of it a few addresses are needed.
        let read = || {
            Pclntab::read(&self.file, &self.elf).map_or_else(Bottoms::default, |table| Bottoms::of(&table))
        };
        self.bottoms.get_or_init(read).at(vaddr)
    }

    /// First address of the function (by its unwind entry) that holds `vaddr`.
    pub(super) fn function_start(&self, vaddr: u64) -> Option<u64> {
        let mut cfi = self.cfi.borrow_mut();
        Some(
            cfi.get_or_insert_with(|| Cfi::read(&self.file, &self.elf))
                .find(vaddr)?
                .start,
        )
    }

    /// Rules of code that has none, from an instruction of it on.
    fn derive(&self, vaddr: u64) -> Option<Row> {
        // Go's functions keep frame pointers, and some never return.
        if self.elf.section(".gopclntab").is_some() {
            return None;
        }
        code::derive(vaddr, self.instructions())
    }

    /// Gives the bytes of an instruction at a virtual address.
    fn instructions(&self) -> impl FnMut(u64) -> Vec<u8> {
        let mut block = (0, Vec::new());
        move |at: u64| {
            let held = |block: &(u64, Vec<u8>)| {
                let from = usize::try_from(at.checked_sub(block.0)?).ok()?;
                block
                    .1
                    .get(from..from.checked_add(MAX_LENGTH)?)
                    .map(<[u8]>::to_vec)
            };
            held(&block).unwrap_or_else(|| {
                block = (at, self.text(at, BLOCK).unwrap_or_default());
                block.1.get(..MAX_LENGTH).unwrap_or(&block.1).to_vec()
            })
        }
    }

    /// Whether code without unwind rules lies in a function that points rbp to its frame: `push %rbp; mov %rsp, %rbp` comes
    /// before it, and no end of a function in between.
    pub(super) fn makes_frame(&self, vaddr: u64) -> bool {
        const PROLOGUES: [[u8; 4]; 2] = [[0x55, 0x48, 0x89, 0xe5], [0x55, 0x48, 0x8b, 0xec]];
        let holds = |s: &&Segment| s.vaddr <= vaddr && vaddr - s.vaddr < s.file_size;
        let Some(segment) = self.elf.segments.iter().filter(|s| s.exec).find(holds) else {
            return false;
        };
        let start = vaddr.saturating_sub(MAX_BODY).max(segment.vaddr);
        let code = self.text(start, vaddr - start).unwrap_or_default();
        let Some(at) = code.windows(4).rposition(|w| PROLOGUES.iter().any(|p| w == p)) else {
            return false;
        };
        // Padding after a return begins another function.
        let ended = code.get(at..).is_some_and(|body| {
            body.windows(3).any(|w| {
                matches!(
                    w,
                    [0xc3, 0x90 | 0xcc, _] | [0xc3, 0x0f, 0x1f] | [0xc3, 0x66, 0x90 | 0x66 | 0x0f | 0x2e]
                )
            })
        });
        !ended && self.function_start(start.wrapping_add(at as u64)).is_none()
    }

    /// Whether a call stands before a virtual address, or a signal handler returns to it: else nothing returns there.
    pub(super) fn called_before(&self, vaddr: u64) -> bool {
        let before = self.text(vaddr.wrapping_sub(8), 8);
        before.is_some_and(|code| ends_in_call(&code)) || self.text(vaddr, 9).as_deref() == Some(&SIGRETURN)
    }

    /// Whether the call before `back` leads to `vaddr`, in code without rules, if it says where it goes; `cfa` is what was derived
    /// there.
    fn may_call(&self, back: u64, vaddr: u64, cfa: &Rule) -> bool {
        let Some(&[0xe8, a, b, c, d]) = self.text(back.wrapping_sub(5), 5).as_deref() else {
            return true;
        };
        let target = back.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
        // A stub of the linker leads anywhere.
        let holds = |s: &Section| s.addr <= target && target - s.addr < s.size;
        self.elf
            .sections
            .iter()
            .any(|s| s.name.starts_with(".plt") && holds(s))
            || (self.function_start(target).is_none()
                && code::comes_to(target, vaddr, cfa, self.instructions()))
    }

    /// `len` bytes of the file at a virtual address.
    pub(super) fn text(&self, vaddr: u64, len: u64) -> Option<Vec<u8>> {
        let (offset, have) = self.elf.file_offset(vaddr)?;
        self.file.read_at(offset, len.min(have))
    }
}

/// Whether the last of eight bytes of code can be a call: `e8 rel32`, or `ff /2` with what its addressing takes.
fn ends_in_call(code: &[u8]) -> bool {
    let &[_, _, _, 0xe8, ..] = code else {
        return (2..=7).any(|length| {
            let call = code.len().checked_sub(length).and_then(|at| code.get(at..));
            let Some(&[0xff, modrm, ref rest @ ..]) = call else {
                return false;
            };
            let (mode, rm) = (modrm >> 6, modrm & 7);
            let scaled = mode != 3 && rm == 4;
            let displacement = match (mode, rm) {
                (1, _) => 1,
                (2, _) | (0, 5) => 4,
                (0, 4) if rest.first().is_some_and(|sib| sib & 7 == 5) => 4,
                _ => 0,
            };
            modrm >> 3 & 7 == 2 && rest.len() == usize::from(scaled) + displacement
        });
    };
    true
}

/// What names a file: the same bytes as far as can be told without reading them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// All files.
#[derive(Default)]
pub(super) struct Modules {
    list: Vec<Module>,
    /// None: a file without code that can be unwound.
    ids: FxHashMap<Key, Option<ModuleId>>,
    vdso: FxHashMap<Vec<u8>, Option<ModuleId>>,
    cfi_bytes: usize,
    go_bytes: Cell<usize>,
    pub(super) rows: Rows,
}

impl Modules {
    pub(super) fn get(&self, id: ModuleId) -> Option<&Module> {
        self.list.get(id.0 as usize)
    }

    /// Bytes between the stack pointer and the return address where code of Go stands, by the runtime's own table: a function that calls
    /// nobody keeps no frame pointer. None where the table does not tell.
    pub(super) fn go_frame(&self, id: ModuleId, vaddr: u64) -> Option<u32> {
        let module = self.get(id).filter(|module| module.elf.is_go())?;
        let read = || {
            let table = Pclntab::read(&module.file, &module.elf)?;
            let bytes = self.go_bytes.get() + table.size();
            (bytes <= MAX_GO_TABLES).then(|| {
                self.go_bytes.set(bytes);
                table
            })
        };
        let step = module.go_frames.get_or_init(read).as_ref()?.step(vaddr)?;
        (!step.top && !step.moves_sp).then_some(step.size)
    }

    /// Opens the file behind a mapping. `Ok(None)`: it is no ELF file.
    pub(super) fn open(&mut self, tgid: u32, map: &Map, source: Source) -> io::Result<Option<ModuleId>> {
        let file = open_mapped(tgid, map, source)?;
        let stat = file.metadata()?;
        let modified = (stat.mtime(), stat.mtime_nsec());
        let key = Key {
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            modified,
        };
        if let Some(&id) = self.ids.get(&key) {
            return Ok(id);
        }
        let name = map.name.strip_suffix(" (deleted)").unwrap_or(&map.name);
        let id = self.add(name.into(), file);
        self.ids.insert(key, id);
        Ok(id)
    }

    /// Adds a vdso, read from a process. It gets a file in memory, so that it is like all others from here on.
    pub(super) fn add_vdso(&mut self, image: Vec<u8>) -> io::Result<Option<ModuleId>> {
        if let Some(&id) = self.vdso.get(&image) {
            return Ok(id);
        }
        // SAFETY: the name is a C string; a new descriptor is returned, or -1.
        let fd = unsafe { libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made, owned by nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(&image)?;
        let id = self.add("[vdso]".into(), file);
        if self.vdso.len() < 64 {
            self.vdso.insert(image, id);
        }
        Ok(id)
    }

    pub(super) fn add(&mut self, path: Arc<str>, file: File) -> Option<ModuleId> {
        let id = ModuleId(self.list.len() as u32);
        if self.list.len() >= MAX_MODULES {
            return None;
        }
        let elf = Elf::parse(&file)?;
        self.list.push(Module {
            path,
            file,
            elf,
            cfi: RefCell::default(),
            bottoms: OnceCell::new(),
            go_frames: OnceCell::new(),
            rows: FxHashMap::default(),
            derived: FxHashMap::default(),
            calls: FxHashMap::default(),
        });
        Some(id)
    }

    /// Rules at a virtual address of a file.
    pub(super) fn lookup(&mut self, id: ModuleId, vaddr: u64) -> Lookup {
        let Self {
            list,
            cfi_bytes,
            rows,
            ..
        } = self;
        let Some(module) = list.get_mut(id.0 as usize) else {
            return Lookup::None;
        };
        if let Some(&lookup) = module.rows.get(&vaddr) {
            return lookup;
        }
        let cfi = module.cfi.get_mut();
        if cfi.is_none() {
            if *cfi_bytes >= MAX_CFI_BYTES {
                return Lookup::None;
            }
            let read = Cfi::read(&module.file, &module.elf);
            *cfi_bytes += read.size();
            *cfi = Some(read);
        }
        let found = cfi.as_mut().and_then(|c| c.find(vaddr));
        let lookup = match found {
            Some(found) => found
                .row
                .and_then(|row| rows.intern(row))
                .map_or(Lookup::Bad, Lookup::Row),
            // After a return address the lookup is one byte early.
            None if [vaddr, vaddr.wrapping_add(1)]
                .iter()
                .any(|&a| module.text(a, 9).as_deref() == Some(&SIGRETURN)) =>
            {
                rows.intern(sigreturn_row()).map_or(Lookup::Bad, Lookup::Row)
            }
            None => Lookup::None,
        };
        if module.rows.len() >= MAX_CACHED {
            module.rows.clear();
        }
        module.rows.insert(vaddr, lookup);
        lookup
    }

    /// Whether the call before `back` can lead to `vaddr`, in the same file, by a row derived there.
    pub(super) fn may_call(&mut self, id: ModuleId, back: u64, vaddr: u64, row: u32) -> bool {
        let Self { list, rows, .. } = self;
        let (Some(module), Some(row)) = (list.get_mut(id.0 as usize), rows.get(row)) else {
            return false;
        };
        if let Some(&known) = module.calls.get(&(back, vaddr)) {
            return known;
        }
        let may = module.may_call(back, vaddr, &row.cfa);
        if module.calls.len() >= MAX_CACHED {
            module.calls.clear();
        }
        module.calls.insert((back, vaddr), may);
        may
    }

    /// The row that the code at a virtual address tells, where a file says nothing of it.
    pub(super) fn derived(&mut self, id: ModuleId, vaddr: u64) -> Option<u32> {
        let Self { list, rows, .. } = self;
        let module = list.get_mut(id.0 as usize)?;
        if let Some(&row) = module.derived.get(&vaddr) {
            return row;
        }
        let row = module.derive(vaddr).and_then(|row| rows.intern(row));
        if module.derived.len() >= MAX_CACHED {
            module.derived.clear();
        }
        module.derived.insert(vaddr, row);
        row
    }
}

/// Where the kernel keeps the interrupted registers: `struct rt_sigframe`, seen from its `uc` (sp after the handler's `ret`).
fn sigreturn_row() -> Row {
    // uc_mcontext lies 40 bytes into ucontext: r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    const ORDER: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7];
    let slot = |at: usize| Rule::AtRegister(7, 40 + 8 * at as i32);
    let mut saved: Vec<_> = ORDER
        .iter()
        .enumerate()
        .map(|(at, &register)| (register, slot(at)))
        .collect();
    saved.sort_by_key(|s| s.0);
    Row {
        cfa: slot(15),
        return_address: slot(16),
        saved: saved.into(),
        signal: true,
    }
}

/// Opens the file of a mapping: the very one, if the kernel lets us; else the one at its path if it is that file.
fn open_mapped(tgid: u32, map: &Map, source: Source) -> io::Result<File> {
    // Opening a device can do anything, so only its path is touched until it is known to be a regular file.
    let regular = |path: &str, checked: bool| {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)?;
        if file.metadata()?.is_file() && (!checked || is_mapped(&file, map)?) {
            Ok(file)
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    };
    let exact = format!("/proc/{tgid}/map_files/{:x}-{:x}", map.start, map.end);
    let file = regular(&exact, source == Source::Heard)
        .or_else(|_| regular(&format!("/proc/{tgid}/root{}", map.name), true))
        .or_else(|_| regular(&map.name, true))?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether an open file is the one that a mapping names.
fn is_mapped(file: &File, map: &Map) -> io::Result<bool> {
    let stat = file.metadata()?;
    if stat.ino() != map.inode {
        return Ok(false);
    }
    let device = u64::from(libc::major(stat.dev())) << 32 | u64::from(libc::minor(stat.dev()));
    Ok(device == map.device || has_many_devices(file))
}

/// On a file system that shows other devices to stat(2) than to mappings.
fn has_many_devices(file: &File) -> bool {
    const BCACHEFS: libc::c_long = 0xca45_1a4e;
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs(2) fills the struct, which was zeroed in case it fails.
    let stat = unsafe {
        libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr());
        stat.assume_init()
    };
    [libc::BTRFS_SUPER_MAGIC, libc::OVERLAYFS_SUPER_MAGIC, BCACHEFS].contains(&stat.f_type)
}
