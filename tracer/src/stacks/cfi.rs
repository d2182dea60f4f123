//! Call frame information of one file: finds the entry for an address and compiles its rules.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EndianSlice, LittleEndian, RegisterRule, UnwindContext, UnwindSection,
};
use gimli::{DebugFrame, EhFrame, FrameDescriptionEntry};

use super::elf::{Elf, Image, u32_at};
use super::expr::{Op, compile};
use super::row::{RIP, Row, Rule};

/// Entries indexed when a file has no search table.
const MAX_ENTRIES: usize = 4 << 20;
/// Bytes of one entry: a program of a megabyte is an attack.
const MAX_ENTRY: usize = 1 << 20;

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Context = UnwindContext<usize>;

/// A section that lists entries.
#[derive(Debug, Default)]
struct Frames {
    addr: u64,
    data: Vec<u8>,
    debug: bool,
    /// (start, end, offset) of every entry, by start; made when first needed.
    index: Option<Vec<(u64, u64, usize)>>,
}

/// `.eh_frame_hdr` in the one encoding that linkers write: pairs of i32, relative to itself.
#[derive(Debug)]
struct Table {
    addr: u64,
    data: Vec<u8>,
    count: usize,
}

/// CFI of a file.
pub(super) struct Cfi {
    table: Option<Table>,
    eh: Frames,
    debug: Frames,
    context: Box<Context>,
}

/// What a file says about an address.
pub(super) struct Found {
    /// First address of the entry.
    pub(super) start: u64,
    /// Rules there; None if they cannot be understood.
    pub(super) row: Option<Row>,
}

impl Cfi {
    /// Reads the sections of a file.
    pub(super) fn read(image: &(impl Image + ?Sized), elf: &Elf) -> Self {
        let header = elf
            .segments
            .iter()
            .find(|s| s.kind == object::elf::PT_GNU_EH_FRAME);
        let header = header.and_then(|s| Table::parse(s.vaddr, image.read_at(s.offset, s.file_size)?));
        let section = |name: &str| {
            let found = elf.section(name)?;
            Some((found.addr, Elf::section_data(image, found)?))
        };
        // A file may have lost its section headers: the search table still says where the entries begin.
        let (addr, data) = section(".eh_frame")
            .or_else(|| {
                let addr = header.as_ref()?.1;
                let (offset, len) = elf.file_offset(addr)?;
                Some((addr, image.read_at(offset, len)?))
            })
            .unwrap_or_default();
        let table = header.filter(|h| h.1 == addr).and_then(|h| h.0);
        let eh = Frames {
            addr,
            data,
            debug: false,
            index: None,
        };
        let (addr, data) = section(".debug_frame").unwrap_or_default();
        Self {
            table,
            eh,
            debug: Frames {
                addr,
                data,
                debug: true,
                index: None,
            },
            context: Box::default(),
        }
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.eh.data.len() + self.debug.data.len() + self.table.as_ref().map_or(0, |t| t.data.len())
    }

    /// Looks an address up and compiles the rules that hold there.
    pub(super) fn find(&mut self, address: u64) -> Option<Found> {
        // gimli is fuzzed, but its sums are unchecked in a build with overflow checks.
        catch_unwind(AssertUnwindSafe(|| self.search(address)))
            .ok()
            .flatten()
    }

    fn search(&mut self, address: u64) -> Option<Found> {
        let Self {
            table,
            eh,
            debug,
            context,
        } = self;
        if let Some(table) = table {
            let offset = table.lookup(address).and_then(|at| at.checked_sub(eh.addr));
            if let Some(found) = offset.and_then(|o| eh.at(usize::try_from(o).ok()?, address, context)) {
                return Some(found);
            }
        } else if let Some(found) = eh.search(address, context) {
            return Some(found);
        }
        debug.search(address, context)
    }
}

impl Table {
    /// The table if it is in the usual encoding, and the address of `.eh_frame`.
    fn parse(addr: u64, data: Vec<u8>) -> Option<(Option<Self>, u64)> {
        // Version 1, pointer pc-relative i32, count u32, pairs data-relative i32.
        let usual = data.get(..2)? == [1, 0x1b];
        let frames = addr
            .wrapping_add(4)
            .wrapping_add_signed(i64::from(u32_at(&data, 4)? as i32));
        if !usual {
            return None;
        }
        if data.get(2..4)? != [0x03, 0x3b] {
            return Some((None, frames));
        }
        let count = (u32_at(&data, 8)? as usize).min((data.len() - 12) / 8);
        Some((Some(Self { addr, data, count }), frames))
    }

    fn pair(&self, at: usize) -> Option<(u64, u64)> {
        let value = |at| {
            Some(
                self.addr
                    .wrapping_add_signed(i64::from(u32_at(&self.data, at)? as i32)),
            )
        };
        Some((value(12 + at * 8)?, value(16 + at * 8)?))
    }

    /// Address of the last entry that starts at or before `address`.
    fn lookup(&self, address: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.pair(middle)?.0 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(self.pair(low.checked_sub(1)?)?.1)
    }
}

impl Frames {
    fn search(&mut self, address: u64, context: &mut Context) -> Option<Found> {
        if self.data.is_empty() {
            return None;
        }
        if self.index.is_none() {
            self.index = Some(self.build());
        }
        let index = self.index.as_ref()?;
        let at = index.partition_point(|e| e.0 <= address).checked_sub(1)?;
        let &(start, end, offset) = index.get(at)?;
        (start..end)
            .contains(&address)
            .then(|| self.at(offset, address, context))?
    }

    fn bases(&self) -> BaseAddresses {
        BaseAddresses::default().set_eh_frame(self.addr)
    }

    fn eh(&self) -> EhFrame<Slice<'_>> {
        let mut section = EhFrame::new(&self.data, LittleEndian);
        section.set_address_size(8);
        section
    }

    fn debug(&self) -> DebugFrame<Slice<'_>> {
        let mut section = DebugFrame::new(&self.data, LittleEndian);
        section.set_address_size(8);
        section
    }

    /// The entry at an offset, if it covers `address`.
    fn at(&self, offset: usize, address: u64, context: &mut Context) -> Option<Found> {
        let bases = self.bases();
        if self.debug {
            let section = self.debug();
            let fde = section
                .fde_from_offset(&bases, offset.into(), DebugFrame::cie_from_offset)
                .ok()?;
            found(&section, &bases, &fde, address, context)
        } else {
            let section = self.eh();
            let fde = section
                .fde_from_offset(&bases, offset.into(), EhFrame::cie_from_offset)
                .ok()?;
            found(&section, &bases, &fde, address, context)
        }
    }

    fn build(&self) -> Vec<(u64, u64, usize)> {
        let mut index = if self.debug {
            list(&self.debug(), &self.bases())
        } else {
            list(&self.eh(), &self.bases())
        };
        index.sort_unstable();
        index
    }
}

fn list<'a, S: UnwindSection<Slice<'a>>>(section: &S, bases: &BaseAddresses) -> Vec<(u64, u64, usize)> {
    let mut index = Vec::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        if index.len() >= MAX_ENTRIES {
            break;
        }
        let CieOrFde::Fde(partial) = entry else { continue };
        if let Ok(fde) = partial.parse(S::cie_from_offset) {
            index.push((fde.initial_address(), fde.end_address(), fde.offset()));
        }
    }
    index
}

fn found<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    fde: &FrameDescriptionEntry<Slice<'a>>,
    address: u64,
    context: &mut Context,
) -> Option<Found> {
    if !fde.contains(address) || fde.entry_len() > MAX_ENTRY {
        return None;
    }
    let signal = fde.is_signal_trampoline();
    let ra = fde.cie().return_address_register();
    let row = fde
        .unwind_info_for_address(section, bases, context, address)
        .ok()
        .and_then(|row| {
            let compiled = |rule| compile_rule(rule, section, fde);
            let cfa = match row.cfa() {
                CfaRule::RegisterAndOffset { register, offset } => {
                    Rule::Register(u8::try_from(register.0).ok()?, i32::try_from(*offset).ok()?)
                }
                CfaRule::Expression(expression) => {
                    expression_rule(&expression.get(section).ok()?, fde, false)?
                }
            };
            let mut return_address = Rule::Same;
            let mut saved = Vec::new();
            for (register, rule) in row.registers() {
                let rule = compiled(rule)?;
                if *register == ra {
                    return_address = rule;
                } else if usize::from(register.0) < RIP {
                    saved.push((u8::try_from(register.0).ok()?, rule));
                }
            }
            saved.sort_by_key(|s| s.0);
            Some(Row {
                cfa,
                return_address,
                saved: saved.into(),
                signal,
            })
        });
    Some(Found {
        start: fde.initial_address(),
        row,
    })
}

fn compile_rule<'a, S: UnwindSection<Slice<'a>>>(
    rule: &RegisterRule<usize>,
    section: &S,
    fde: &FrameDescriptionEntry<Slice<'a>>,
) -> Option<Rule> {
    Some(match rule {
        RegisterRule::Undefined => Rule::Undefined,
        RegisterRule::SameValue => Rule::Same,
        RegisterRule::Offset(by) => Rule::AtCfa(i32::try_from(*by).ok()?),
        RegisterRule::ValOffset(by) => Rule::Cfa(i32::try_from(*by).ok()?),
        RegisterRule::Register(register) => Rule::Register(u8::try_from(register.0).ok()?, 0),
        RegisterRule::Expression(e) => expression_rule(&e.get(section).ok()?, fde, true)?,
        RegisterRule::ValExpression(e) => expression_rule(&e.get(section).ok()?, fde, false)?,
        _ => return None,
    })
}

/// Compiles an expression; the two shapes that make up nearly all of them get rules of their own.
fn expression_rule(
    expression: &gimli::Expression<Slice<'_>>,
    fde: &FrameDescriptionEntry<Slice<'_>>,
    at: bool,
) -> Option<Rule> {
    let ops = compile(expression, fde.cie().encoding())?;
    let small = |by: i64| i32::try_from(by).ok();
    Some(match (&*ops, at) {
        (&[Op::Register(register, by)], true) if small(by).is_some() => {
            Rule::AtRegister(register, small(by)?)
        }
        (&[Op::Register(register, by)], false) if small(by).is_some() => Rule::Register(register, small(by)?),
        (&[Op::Register(register, by), Op::Deref(8)], false) if small(by).is_some() => {
            Rule::AtRegister(register, small(by)?)
        }
        (_, true) => Rule::At(ops.into()),
        (_, false) => Rule::Value(ops.into()),
    })
}
