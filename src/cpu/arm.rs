//! Arm, 64-bit and 32-bit: registers, their notes and text.
//!
//! System registers are told by KVM's names for them, which are numbers.
//!
//! Source followed: QEMU `target/arm/machine.c`, `arch_dump.c`, `cpu.c`
//! (`aarch64_cpu_dump_state`, `arm_cpu_dump_state`), `helper.c`
//! (`aarch64_sync_32_to_64`).

use std::fmt;

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, missing, numbered, word, words};
use super::text::write_rows;
use crate::arch::Architecture;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::State;

/// What KVM's names of 64-bit system registers begin with; below it stands
/// `op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2`.
const SYSTEM_64: u64 = 0x6030_0000_0013_0000;
/// Registers that 64-bit processors alone have: `ID_AA64DFR0_EL1`,
/// `ID_AA64ISAR0_EL1`, `FPCR`. Those that 32-bit ones have too are named in both
/// ways.
const OF_64: [u64; 3] = [SYSTEM_64 | 0xc028, SYSTEM_64 | 0xc030, SYSTEM_64 | 0xda20];
/// SCTLR of a 32-bit processor, as KVM names it.
const SCTLR_32: u64 = 0x4020_0000_000f_0800;

/// Those that a reader of memory, or of the text, asks for.
const SYSTEM: [(&str, u64); 12] = [
    ("sctlr_el1", 0xc080),
    ("cpacr_el1", 0xc082),
    ("ttbr0_el1", 0xc100),
    ("ttbr1_el1", 0xc101),
    ("tcr_el1", 0xc102),
    ("mair_el1", 0xc510),
    ("vbar_el1", 0xc600),
    ("contextidr_el1", 0xc681),
    ("tpidr_el1", 0xc684),
    ("cptr_el2", 0xe08a),
    ("scr_el3", 0xf088),
    ("cptr_el3", 0xf08a),
];

/// Bits of PSTATE and CPSR.
const NOT_64: u64 = 1 << 4;
const EL: u64 = 3 << 2;
/// `SCTLR_EL1.EE`: data at EL1 is big-endian.
const DATA_BIG_ENDIAN: u64 = 1 << 25;
/// `CPTR_ELx.TFP`: floating point traps.
const TRAP_FP: u64 = 1 << 10;
/// What of the old FPSCR is in FPSR and FPCR.
const FPSR: u64 = 0xf800_009f;
const FPCR: u64 = 0x07ff_9f00;

pub(super) fn is_big_endian(vcpu: &Vcpu) -> bool {
    vcpu.get("sctlr_el1") & DATA_BIG_ENDIAN != 0
}

/// The registers, and whether the processor has 64 bits.
pub(super) fn read(state: &State<'_, '_>) -> Result<(Architecture, Registers)> {
    let names = words(state, "cpreg_vmstate_indexes");
    let values = words(state, "cpreg_vmstate_values");
    let architecture = match names.iter().any(|name| OF_64.contains(name)) {
        true => Architecture::Aarch64,
        false => Architecture::Arm,
    };
    let mut registers = Registers::default();
    // Since 10.2 it has a field of its own where 32 bits do not hold it.
    let status = ["pstate64", "cpsr"].iter().find_map(|name| word(state, name).ok());
    let status = status.ok_or_else(|| missing("cpsr"))?;
    match architecture {
        Architecture::Aarch64 => {
            put_general_64(&mut registers, state, status)?;
            registers.put("pstate", status);
        }
        _ => {
            registers.put_array(state, "env.regs", numbered("r", 16))?;
            registers.put("cpsr", status);
        }
    }
    put_floating(&mut registers, state);
    registers.put_array(state, "env.elr_el", numbered("elr_el", 4))?;
    registers.put_array(state, "env.sp_el", numbered("sp_el", 4))?;
    for (name, value) in names.iter().zip(values) {
        match SYSTEM.iter().find(|(_, known)| SYSTEM_64 | known == *name) {
            Some((known, _)) => registers.put(*known, value),
            None if *name == SCTLR_32 => registers.put("sctlr_el1", value),
            None => {}
        }
    }
    Ok((architecture, registers))
}

/// `pc`, `x0` to `x30`, `sp`; in 32-bit state, where they are of the banks.
fn put_general_64(registers: &mut Registers, state: &State<'_, '_>, status: u64) -> Result<()> {
    if status & NOT_64 == 0 {
        registers.put_each(state, &[("pc", "env.pc")])?;
        return registers.put_array(state, "env.xregs", numbered("x", 31).chain(["sp".to_owned()]));
    }
    registers.put_array(state, "env.regs", numbered("r", 16))?;
    registers.put("pc", registers.word("r15", 0));
    for (nth, word) in banked(state, status).into_iter().enumerate() {
        registers.put(format!("x{nth}"), word);
    }
    registers.put("sp", 0);
    Ok(())
}

/// Where 32-bit registers are among the 64-bit ones.
fn banked(state: &State<'_, '_>, status: u64) -> [u64; 31] {
    /// Which of the banks is whose, as QEMU numbers them.
    const MODES: [(u64, usize); 9] =
        [(0x10, 0), (0x1f, 0), (0x13, 1), (0x17, 2), (0x1b, 3), (0x12, 4), (0x11, 5), (0x1a, 6), (0x16, 7)];
    let at = |list: &[u64], nth: usize| list.get(nth).copied().unwrap_or(0);
    let list = |name: &str| words(state, name);
    let (live, user, fast) = (list("env.regs"), list("env.usr_regs"), list("env.fiq_regs"));
    let (stacks, links) = (list("env.banked_r13"), list("env.banked_r14"));
    let bank = MODES.iter().find(|(mode, _)| *mode == status & 0x1f).map_or(0, |(_, bank)| *bank);
    let is_fast = bank == 5;
    let stack = |of: usize| if of == bank { at(&live, 13) } else { at(&stacks, of) };
    let link = |of: usize| if of == bank { at(&live, 14) } else { at(&links, of) };
    let mut x = [0; 31];
    for (nth, x) in x.iter_mut().enumerate() {
        *x = match nth {
            0..=7 => at(&live, nth),
            8..=12 if is_fast => at(&user, nth - 8),
            8..=12 => at(&live, nth),
            13 => stack(0),
            14 => link(0),
            15 => stack(6),
            16 => link(4),
            17 => stack(4),
            18 => link(1),
            19 => stack(1),
            20 => link(2),
            21 => stack(2),
            22 => link(3),
            23 => stack(3),
            24..=28 if is_fast => at(&live, nth - 16),
            24..=28 => at(&fast, nth - 24),
            29 => stack(5),
            _ => link(5),
        };
    }
    x
}

/// `v0` to `v31`, `fpcr`, `fpsr`.
fn put_floating(registers: &mut Registers, state: &State<'_, '_>) {
    let Some(vfp) = state.subsection("cpu/vfp") else { return };
    for nth in 0..32 {
        let words = words(vfp, &format!("env.vfp.zregs[{nth}].d"));
        if !words.is_empty() {
            registers.put_words(format!("v{nth}"), words);
        }
    }
    if let Ok(both) = word(vfp, "fpscr") {
        registers.put("fpcr", both & FPCR);
        registers.put("fpsr", both & FPSR);
        registers.put("fpscr", both & (FPCR | FPSR));
    }
    // Since 9.1 where one has a bit that FPSCR has not.
    if let Some(parts) = vfp.subsection("cpu/vfp/fpcr_fpsr") {
        registers.put_some(parts, &[("fpcr", "fpcr"), ("fpsr", "fpsr")]);
    }
}

pub(super) fn notes_64(vcpu: &Vcpu, is_big_endian: bool) -> Vec<Note> {
    let mut prstatus = Desc::prstatus_64(vcpu, is_big_endian);
    prstatus.registers(vcpu, numbered("x", 31));
    prstatus.registers(vcpu, ["sp", "pc", "pstate"]);
    prstatus.word_32(1);
    prstatus.zeros(4);

    let mut fpu = Desc::new(is_big_endian);
    numbered("v", 32).for_each(|name| fpu.word_128(vcpu.pair(&name)));
    ["fpsr", "fpcr"].iter().for_each(|name| fpu.word_32(vcpu.get(name)));
    fpu.zeros(8);
    vec![prstatus.note("CORE", nt::PRSTATUS), fpu.note("CORE", nt::PRFPREG)]
}

/// `NT_ARM_VFP`.
const NT_ARM_VFP: u32 = 0x400;

pub(super) fn notes_32(vcpu: &Vcpu, is_big_endian: bool) -> Vec<Note> {
    let has_floating = vcpu.register("fpscr").is_some();
    let mut prstatus = Desc::prstatus_32(vcpu, is_big_endian);
    numbered("r", 16).for_each(|name| prstatus.word_32(vcpu.get(&name)));
    prstatus.word_32(vcpu.get("cpsr"));
    prstatus.zeros(4);
    prstatus.word_32(has_floating.into());
    let mut notes = vec![prstatus.note("CORE", nt::PRSTATUS)];
    if has_floating {
        let mut fpu = Desc::new(is_big_endian);
        numbered("v", 16).flat_map(|name| vcpu.pair(&name)).for_each(|word| fpu.word_64(word));
        fpu.word_32(vcpu.get("fpscr"));
        notes.push(fpu.note("LINUX", NT_ARM_VFP));
    }
    notes
}

/// Whether floating point traps where the processor is.
fn traps_floating(vcpu: &Vcpu, el: u64) -> bool {
    let by_kernel = match vcpu.get("cpacr_el1") >> 20 & 3 {
        3 => false,
        1 => el == 0,
        _ => el <= 1,
    };
    by_kernel || el <= 2 && vcpu.get("cptr_el2") & TRAP_FP != 0 || vcpu.get("cptr_el3") & TRAP_FP != 0
}

pub(super) fn write_64(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    let status = vcpu.get("pstate");
    if status & NOT_64 != 0 {
        write_general_32(f, vcpu)?;
        return write_status_32(f, vcpu, status);
    }
    let general =
        numbered("x", 31).enumerate().map(|(nth, name)| format!("X{nth:02}={:016x}", vcpu.get(&name)));
    let first = std::iter::once(format!(" PC={:016x}", vcpu.get("pc")));
    let last = std::iter::once(format!(" SP={:016x}", vcpu.get("sp")));
    write_rows(f, 3, first.chain(general).chain(last))?;
    let el = (status & EL) >> 2;
    let stack = if status & 1 != 0 { 'h' } else { 't' };
    write!(f, "PSTATE={status:08x} {} {}EL{el}{stack}", flags(status), world(vcpu, el))?;
    if traps_floating(vcpu, el) {
        return writeln!(f, "    FPU disabled");
    }
    writeln!(f, "     FPCR={:08x} FPSR={:08x}", vcpu.get("fpcr"), vcpu.get("fpsr"))?;
    let vector = |(nth, name): (usize, String)| {
        let [low, high] = vcpu.pair(&name);
        format!("Q{nth:02}={high:016x}:{low:016x}")
    };
    write_rows(f, 2, numbered("v", 32).enumerate().map(vector))
}

/// N, Z, C, V.
fn flags(status: u64) -> String {
    let flags = [('N', 31), ('Z', 30), ('C', 29), ('V', 28)];
    flags.map(|(name, bit)| if status >> bit & 1 != 0 { name } else { '-' }).iter().collect()
}

/// Secure or not, if there is an EL3 and this is not it.
fn world(vcpu: &Vcpu, el: u64) -> &'static str {
    match vcpu.register("scr_el3") {
        Some(_) if el == 3 => "",
        Some(control) if control & 1 != 0 => "NS ",
        Some(_) => "S ",
        None => "",
    }
}

pub(super) fn write_32(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    write_general_32(f, vcpu)?;
    write_status_32(f, vcpu, vcpu.get("cpsr"))?;
    let Some(control) = vcpu.register("fpscr") else { return Ok(()) };
    for (nth, word) in numbered("v", 16).flat_map(|name| vcpu.pair(&name)).enumerate() {
        let (low, high) = (word & 0xffff_ffff, word >> 32);
        writeln!(f, "s{:02}={low:08x} s{:02}={high:08x} d{nth:02}={word:016x}", nth * 2, nth * 2 + 1)?;
    }
    writeln!(f, "FPSCR: {control:08x}")
}

fn write_general_32(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    write_rows(
        f,
        4,
        numbered("r", 16).enumerate().map(|(nth, name)| format!("R{nth:02}={:08x}", vcpu.get(&name))),
    )
}

fn write_status_32(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu, status: u64) -> fmt::Result {
    const MODES: [&str; 16] = [
        "usr", "fiq", "irq", "svc", "???", "???", "mon", "abt", "???", "???", "hyp", "und", "???", "???",
        "???", "sys",
    ];
    let thumb = if status >> 5 & 1 != 0 { 'T' } else { 'A' };
    let mode = usize::try_from(status & 15).ok().and_then(|mode| MODES.get(mode)).unwrap_or(&"???");
    let world = if status & 0x1f == 0x16 { "" } else { world(vcpu, 0) };
    writeln!(f, "PSR={status:08x} {} {thumb} {world}{mode}32", flags(status))
}
