//! RISC-V: registers, their note and text.
//!
//! Source followed: QEMU `target/riscv/machine.c`, `arch_dump.c`, `cpu.c`
//! (`riscv_cpu_dump_state`), `csr.c`.

use std::fmt;

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, words};
use super::text::write_rows;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::State;

const GENERAL: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

const FLOATING: [&str; 32] = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4",
    "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8",
    "ft9", "ft10", "ft11",
];

/// Control and status registers, and their fields, in QEMU's order; with the
/// extension of `misa` that they need, as a letter.
const CONTROL: [(&str, &str, char); 28] = [
    ("mhartid", "env.mhartid", 'I'),
    ("mstatus", "env.mstatus", 'I'),
    ("hstatus", "env.hstatus", 'H'),
    ("vsstatus", "env.vsstatus", 'H'),
    ("mip", "env.mip", 'I'),
    ("mie", "env.mie", 'I'),
    ("mideleg", "env.mideleg", 'S'),
    ("hideleg", "env.hideleg", 'H'),
    ("medeleg", "env.medeleg", 'S'),
    ("hedeleg", "env.hedeleg", 'H'),
    ("mtvec", "env.mtvec", 'I'),
    ("stvec", "env.stvec", 'S'),
    ("vstvec", "env.vstvec", 'H'),
    ("mepc", "env.mepc", 'I'),
    ("sepc", "env.sepc", 'S'),
    ("vsepc", "env.vsepc", 'H'),
    ("mcause", "env.mcause", 'I'),
    ("scause", "env.scause", 'S'),
    ("vscause", "env.vscause", 'H'),
    ("mtval", "env.mtval", 'I'),
    ("stval", "env.stval", 'S'),
    ("htval", "env.htval", 'H'),
    ("mtval2", "env.mtval2", 'H'),
    ("mscratch", "env.mscratch", 'I'),
    ("sscratch", "env.sscratch", 'S'),
    ("satp", "env.satp", 'S'),
    ("vsatp", "env.vsatp", 'H'),
    ("hgatp", "env.hgatp", 'H'),
];

/// How many of them `info registers` shows.
const SHOWN: usize = 26;

/// Bits of `mstatus`: user mode is big-endian; any of the three fields of state
/// is dirty, which [`SUMMARY`] says.
const USER_BIG_ENDIAN: u64 = 1 << 6;
const DIRTY: [u64; 3] = [3 << 9, 3 << 13, 3 << 15];
const SUMMARY: u64 = 1 << 63;
/// What QEMU always says in `hstatus`: that VS-mode has 64 bits.
const VS_IS_64: u64 = 2 << 32;

pub(super) fn is_big_endian(vcpu: &Vcpu) -> bool {
    vcpu.get("mstatus") & USER_BIG_ENDIAN != 0
}

pub(super) fn read(state: &State<'_, '_>) -> Result<Registers> {
    let mut registers = Registers::default();
    registers.put_some(state, &[("virt", "env.virt_enabled")]);
    registers.put_each(state, &[("pc", "env.pc"), ("misa", "env.misa_ext")])?;
    let hypervisor = state.subsection("cpu/hyper");
    for (name, field, _) in CONTROL {
        registers.put_some(state, &[(name, field)]);
        hypervisor.iter().for_each(|state| registers.put_some(state, &[(name, field)]));
    }
    registers.put_array(state, "env.gpr", GENERAL)?;
    registers.put_some(state, &[("frm", "env.frm"), ("priv", "env.priv")]);
    registers.put_array(state, "env.fpr", FLOATING)?;
    if let Some(vector) = state.subsection("cpu/vector") {
        let rest = [
            ("vstart", "env.vstart"),
            ("vxrm", "env.vxrm"),
            ("vxsat", "env.vxsat"),
            ("vl", "env.vl"),
            ("vtype", "env.vtype"),
        ];
        registers.put_some(vector, &rest);
        registers.put_words("vreg", words(vector, "env.vreg"));
    }
    Ok(registers)
}

pub(super) fn notes(vcpu: &Vcpu, is_big_endian: bool) -> Vec<Note> {
    let mut desc = Desc::prstatus_64(vcpu, is_big_endian);
    desc.registers(vcpu, ["pc"]);
    // All but the register that is 0.
    desc.registers(vcpu, GENERAL.iter().skip(1));
    desc.zeros(8);
    vec![desc.note("CORE", nt::PRSTATUS)]
}

fn has(vcpu: &Vcpu, extension: char) -> bool {
    let bit = u32::from(extension) - u32::from('A');
    extension == 'I' || vcpu.get("misa") >> bit & 1 != 0
}

/// A control register as the guest reads it, which is not quite as it is kept.
fn control(vcpu: &Vcpu, name: &str) -> u64 {
    let kept = vcpu.get(name);
    match name {
        "mstatus" | "vsstatus" if DIRTY.iter().any(|field| kept & field == *field) => kept | SUMMARY,
        "hstatus" => kept & !(3 << 32) | VS_IS_64,
        _ => kept,
    }
}

pub(super) fn write(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    if has(vcpu, 'H') {
        writeln!(f, " V      =   {}", vcpu.get("virt"))?;
    }
    writeln!(f, " {:<8} {:016x}", "pc", vcpu.get("pc"))?;
    for (name, _, extension) in CONTROL.iter().take(SHOWN) {
        if has(vcpu, *extension) {
            writeln!(f, " {name:<8} {:016x}", control(vcpu, name))?;
        }
    }
    let row = |prefix: char, names: [&'static str; 32]| {
        let cell = move |(nth, name): (usize, &'static str)| {
            let label = format!("{prefix}{nth}/{name}");
            format!("{label:<8} {:016x}", vcpu.get(name))
        };
        let mut cells: Vec<String> = names.into_iter().enumerate().map(cell).collect();
        // Each line begins with a blank.
        cells.iter_mut().step_by(4).for_each(|cell| cell.insert(0, ' '));
        cells
    };
    write_rows(f, 4, row('x', GENERAL))?;
    if has(vcpu, 'F') {
        writeln!(f, " {:<8} {:016x}", "fcsr", vcpu.get("frm") << 5)?;
    }
    write_rows(f, 4, row('f', FLOATING))
}
