//! Walks a stack from its leaf to its bottom.

use tracer_ebpf::{memo::Source, wire::Regs};

use super::bottom::Bottom;
use super::log::{Origin, Reader, Value};
use super::memory::Copied;
use super::module::{Lookup, Module, ModuleId, Modules};
use super::row::{Fault, Memory, PRESERVED, RBP, RIP, RSP, Registers, Row};
use super::space::{Code, Failures, Space};
use super::{End, Frame, MAX_FRAMES};

/// Handlers nested in handlers; each may switch to another stack, which a loop could abuse.
const MAX_SIGNALS: u32 = 16;
/// A frameless function that only makes a system call is shorter than this.
const MAX_STUB: u64 = 512;
/// A function that has not come further than this may not have made its frame yet.
const MAX_PROLOGUE: u64 = 32;

/// A walk in progress.
pub(super) struct Walk<'a, M> {
    pub(super) tgid: u32,
    pub(super) space: &'a mut Space,
    pub(super) modules: &'a mut Modules,
    pub(super) failures: &'a mut Failures,
    pub(super) reader: Reader<'a, M>,
    pub(super) frames: &'a mut Vec<Frame>,
}

/// One step's outcome, when it is not the end.
struct Step {
    registers: Registers,
    /// The caller called, so its address is the one after the call.
    called: bool,
    guessed: bool,
}

impl<M: Memory> Walk<'_, M> {
    /// Collects frames from `regs` on, and says why it ended.
    pub(super) fn run(&mut self, regs: &Regs) -> End {
        let mut registers = Registers {
            value: [Value::fixed(0); 17],
            known: (1 << 17) - 1,
        };
        for ((number, to), from) in (0..).zip(&mut registers.value).zip(regs.gp) {
            *to = Value {
                value: from,
                origin: Origin::Input(Source::Register(number), from),
            };
        }
        registers.value[RSP] = Value {
            value: regs.sp,
            origin: Origin::Sp,
        };
        // It is part of a memo's key.
        registers.value[RIP] = Value::fixed(regs.ip);
        let (mut called, mut guessed, mut signals) = (false, false, 0);
        loop {
            if self.frames.len() >= MAX_FRAMES {
                return End::TooDeep;
            }
            let pc = registers.value[RIP].value;
            // The call before a return address may be the last instruction of its function.
            let code = self.code(pc.wrapping_sub(u64::from(called)));
            let leaf = self.frames.is_empty();
            if code == Code::No && !leaf {
                // An address that is not code was never a frame.
                return End::BadCfi;
            }
            self.push(pc, code, called, guessed);
            let step = match code {
                Code::File {
                    lookup: Lookup::Row(row),
                    ..
                } => self.by_row(row, &registers, leaf),
                Code::File {
                    lookup: Lookup::Bad, ..
                } => Err(End::BadCfi),
                Code::File { module, bias, .. } => {
                    self.by_pointer(&registers, called, guessed, Some((module, bias)))
                }
                Code::Anonymous => self.by_pointer(&registers, called, guessed, None),
                Code::Unreadable => {
                    self.reader.opaque();
                    Err(End::NoCfi)
                }
                Code::No => Err(End::NoCfi),
            };
            match step {
                Err(end) => return end,
                Ok(step) => (registers, called, guessed) = (step.registers, step.called, step.guessed),
            }
            if !called {
                signals += 1;
                if signals > MAX_SIGNALS {
                    return End::TooDeep;
                }
            }
            if registers.value[RIP].value == 0 {
                return End::Complete;
            }
        }
    }

    fn code(&mut self, address: u64) -> Code {
        self.space.code(self.tgid, address, self.modules, self.failures)
    }

    fn push(&mut self, pc: u64, code: Code, called: bool, guessed: bool) {
        let (module, offset) = match code {
            Code::File { module, bias, .. } => (Some(module), pc.wrapping_sub(bias)),
            _ => (None, 0),
        };
        self.frames.push(Frame {
            module,
            address: pc,
            offset,
            return_address: called,
            guessed,
        });
    }

    fn by_row(&mut self, row: u32, callee: &Registers, leaf: bool) -> Result<Step, End> {
        let Self { modules, reader, .. } = self;
        let row: &Row = modules.rows.get(row).ok_or(End::BadCfi)?;
        let cfa = row
            .cfa
            .apply(RSP, callee, Value::fixed(0), reader)
            .map_err(End::from)?
            .ok_or(End::BadCfi)?;
        let cfa = reader.place(cfa);
        let mut registers = callee.clone();
        if !row.signal {
            registers.known &= PRESERVED;
        }
        registers.set(RSP, Some(cfa));
        for (register, rule) in &row.saved {
            let register = usize::from(*register);
            // A register that cannot be had is lost, which is an error only where it is needed.
            let value = match rule.apply(register, callee, cfa, reader) {
                Ok(value) => value,
                Err(Fault::Beyond) if PRESERVED & 1 << register != 0 => return Err(End::Truncated),
                Err(fault) => {
                    if fault != Fault::Rules {
                        reader.opaque();
                    }
                    None
                }
            };
            registers.set(register, value);
        }
        let Some(ip) = row
            .return_address
            .apply(RIP, callee, cfa, reader)
            .map_err(End::from)?
        else {
            return Err(End::Complete);
        };
        let sp = reader.place(registers.get(RSP).map_err(End::from)?);
        registers.set(RSP, Some(sp));
        registers.set(RIP, Some(reader.decide(ip)));
        let rises = sp.value > callee.value[RSP].value || (leaf && sp.value == callee.value[RSP].value);
        if !row.signal && !rises {
            return Err(End::BadCfi);
        }
        Ok(Step {
            registers,
            called: !row.signal,
            guessed: false,
        })
    }

    /// Without rules: by frame pointer, and only if all that it leads to looks like a frame.
    fn by_pointer(
        &mut self,
        callee: &Registers,
        called: bool,
        guessed: bool,
        file: Option<(ModuleId, u64)>,
    ) -> Result<Step, End> {
        let bottom = self.bottom(callee, called, file);
        // Whether another stack lies within what was copied of this one is chance, which no memo recognises.
        if bottom == Some(Bottom::Left) || (bottom.is_some() && !M::OTHERS) {
            return Err(End::Complete);
        }
        self.beyond(callee, called, guessed, file)
            .map_err(|end| match end {
                // It is another stack, which was not copied.
                End::NoCfi | End::Truncated | End::Unreadable if bottom.is_some() => End::Complete,
                end => end,
            })
    }

    /// Whether the function that called is one at which a stack of Go's scheduler ends.
    fn bottom(&self, callee: &Registers, called: bool, file: Option<(ModuleId, u64)>) -> Option<Bottom> {
        let (module, bias) = file.filter(|_| called)?;
        let vaddr = callee.value[RIP].value.wrapping_sub(1).wrapping_sub(bias);
        self.modules.get(module)?.bottom(vaddr)
    }

    fn beyond(
        &mut self,
        callee: &Registers,
        called: bool,
        guessed: bool,
        file: Option<(ModuleId, u64)>,
    ) -> Result<Step, End> {
        let lost = if file.is_some() { End::NoCfi } else { End::Jit };
        if !called
            && let Some((module, bias)) = file
            && let Some(step) = self
                .stub(callee, module, bias)
                .or_else(|| self.go_leaf(callee, module, bias))
        {
            return Ok(step);
        }
        if let Some((module, bias)) = file
            && let Some(step) = self.by_code(callee, module, bias)
        {
            return step;
        }
        if called
            && file.is_none()
            && let Some(step) = self.trampoline(callee)
        {
            return step;
        }
        let sp = callee.value[RSP].value;
        let frame = self.reader.place_or_null(callee.get(RBP).map_err(|_| lost)?);
        // A null pointer marks the outermost frame, where pointers are kept; elsewhere a register just happens to be 0.
        let kept = file.is_some_and(|(m, _)| self.modules.get(m).is_some_and(Module::keeps_pointers));
        if frame.value == 0 && guessed && kept {
            return Err(End::Complete);
        }
        if frame.value < sp || !frame.value.is_multiple_of(8) {
            return Err(lost);
        }
        // Elsewhere the register is the caller's, or no pointer at all, unless this function has set it.
        let vaddr = |bias| callee.value[RIP].value.wrapping_sub(bias);
        let sets = |(module, bias)| Some(self.modules.get(module)?.makes_frame(vaddr(bias)));
        if !kept && file.is_some_and(|file| sets(file) != Some(true)) {
            return Err(lost);
        }
        let saved = self.saved(frame, lost)?;
        if frame.value.checked_add(16).is_none() {
            return Err(lost);
        }
        let ip = self.saved(frame.plus(8), lost)?;
        let ip = self.reader.decide(ip);
        if ip.value == 0 {
            return Err(if kept { End::Complete } else { lost });
        }
        let saved = if file.is_none() {
            self.reader.place_or_null(saved)
        } else {
            saved
        };
        let falls = saved.value != 0 && saved.value <= frame.value;
        let calls = match self.code(ip.value.wrapping_sub(1)) {
            Code::File { .. } if !kept && file.is_some() => self.returns_to(ip.value),
            Code::No => false,
            _ => true,
        };
        if !calls || (falls && file.is_none()) {
            return Err(lost);
        }
        let mut registers = callee.clone();
        // Only what this frame saved is known of its caller.
        registers.known = 1 << RSP | 1 << RBP | 1 << RIP;
        registers.value[RSP] = frame.plus(16);
        registers.value[RBP] = saved;
        registers.value[RIP] = ip;
        Ok(Step {
            registers,
            called: true,
            guessed: true,
        })
    }

    /// By what the code itself does until it returns, if that leads to where a call returns to.
    fn by_code(&mut self, callee: &Registers, module: ModuleId, bias: u64) -> Option<Result<Step, End>> {
        let pc = callee.value[RIP].value;
        let row = self.modules.derived(module, pc.wrapping_sub(bias))?;
        match self.by_row(row, callee, false) {
            Ok(step) => {
                let (ip, sp) = (step.registers.value[RIP].value, step.registers.value[RSP].value);
                // Before a call the stack is aligned; and one that says where it goes must come here.
                let calls = match self.code(ip.wrapping_sub(1)) {
                    Code::File { module: caller, .. } if caller == module => {
                        let vaddr = |address: u64| address.wrapping_sub(bias);
                        self.modules.may_call(module, vaddr(ip), vaddr(pc), row)
                    }
                    _ => true,
                };
                let credible = calls && sp.is_multiple_of(16) && self.returns_to(ip);
                credible.then_some(Ok(Step {
                    guessed: true,
                    ..step
                }))
            }
            Err(End::BadCfi) => None,
            Err(end) => Some(Err(end)),
        }
    }

    /// Whether a call can return to an address.
    fn returns_to(&mut self, ip: u64) -> bool {
        match self.code(ip.wrapping_sub(1)) {
            Code::File { module, bias, .. } => self
                .modules
                .get(module)
                .is_some_and(|module| module.called_before(ip.wrapping_sub(bias))),
            Code::Anonymous | Code::Unreadable => true,
            Code::No => false,
        }
    }

    /// A word that a frame pointer leads to.
    fn saved(&mut self, at: Value, lost: End) -> Result<Value, End> {
        self.reader.word(at).map_err(|fault| {
            self.reader.opaque();
            if fault == Fault::Beyond {
                End::Truncated
            } else {
                lost
            }
        })
    }

    /// Generated code that only calls on (CPython's, one for each Python function) keeps no frame pointer. But the code after the call
    /// is the end of the function, and so it tells where the caller's address is, and that it keeps all other registers.
    fn trampoline(&mut self, callee: &Registers) -> Option<Result<Step, End>> {
        /// `add $8, %rsp; ret`
        const END: [u8; 5] = [0x48, 0x83, 0xc4, 0x08, 0xc3];
        let (pc, sp) = (callee.value[RIP].value, callee.value[RSP]);
        if super::memory::read(self.tgid, pc, END.len())? != END {
            return None;
        }
        sp.value.checked_add(16)?;
        let ip = match self.reader.word(sp.plus(8)) {
            Ok(ip) => self.reader.decide(ip),
            Err(Fault::Beyond) => return Some(Err(End::Truncated)),
            Err(_) => {
                self.reader.opaque();
                return None;
            }
        };
        let mut registers = callee.clone();
        registers.known &= PRESERVED;
        registers.value[RSP] = sp.plus(16);
        registers.value[RIP] = ip;
        Some(Ok(Step {
            registers,
            called: true,
            guessed: false,
        }))
    }

    /// A function that has no frame, as it only makes a system call (Go's) or has not come so far: the word at sp is its
    /// return address *if* a direct call that leads here stands before it, which proves it.
    fn stub(&mut self, callee: &Registers, module: ModuleId, bias: u64) -> Option<Step> {
        let (pc, sp) = (callee.value[RIP].value, callee.value[RSP]);
        let vaddr = pc.wrapping_sub(bias);
        let text = |modules: &Modules, at: u64, len| modules.get(module)?.text(at, len);
        let system_call = text(self.modules, vaddr.wrapping_sub(2), 2)? == [0x0f, 0x05];
        let reach = if system_call { MAX_STUB } else { MAX_PROLOGUE };
        let Ok(ip) = self.reader.word(sp) else {
            self.reader.opaque();
            return None;
        };
        let ip = self.reader.decide(ip);
        let back = ip.value.wrapping_sub(bias);
        let call = text(self.modules, back.wrapping_sub(5), 5)?;
        let by = i32::from_le_bytes(call.get(1..5)?.try_into().ok()?);
        let target = back.wrapping_add_signed(i64::from(by));
        if call.first() != Some(&0xe8) || vaddr.checked_sub(target)? > reach {
            return None;
        }
        let mut registers = callee.clone();
        registers.known &= PRESERVED;
        registers.value[RSP] = sp.plus(8);
        registers.value[RIP] = ip;
        Some(Step {
            registers,
            called: true,
            guessed: true,
        })
    }

    /// Code of Go that stands at any instruction, by the table of its runtime: before it has set the frame pointer, and in a function that
    /// never does, that is the caller's.
    fn go_leaf(&mut self, callee: &Registers, module: ModuleId, bias: u64) -> Option<Step> {
        let vaddr = callee.value[RIP].value.wrapping_sub(bias);
        let size = i64::from(self.modules.go_frame(module, vaddr)?);
        let sp = callee.value[RSP];
        let ip = self.reader.word(sp.plus(size)).ok()?;
        let ip = self.reader.decide(ip);
        if !self.returns_to(ip.value) {
            return None;
        }
        let mut registers = callee.clone();
        registers.known &= PRESERVED;
        registers.value[RSP] = sp.plus(size + 8);
        registers.value[RIP] = ip;
        if size > 0 {
            let frame = self.reader.place_or_null(callee.get(RBP).ok()?);
            if frame.value == sp.plus(size - 8).value {
                registers.value[RBP] = self.reader.word(frame).ok()?;
            }
        }
        Some(Step {
            registers,
            called: true,
            guessed: true,
        })
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Beyond => Self::Truncated,
            Fault::Unreadable => Self::Unreadable,
            Fault::Rules => Self::BadCfi,
        }
    }
}

/// The copy that a probe made.
pub(super) fn copied<'a>(regs: &Regs, bytes: &'a [u8]) -> Copied<'a> {
    Copied::new(
        regs.sp,
        bytes,
        regs.fault == tracer_ebpf::wire::stack_fault::UNREADABLE,
        regs.missing,
    )
}
