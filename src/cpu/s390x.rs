//! IBM Z: registers, their notes and text.
//!
//! Source followed: QEMU `target/s390x/machine.c`, `arch_dump.c`, `cpu-dump.c`.

use std::fmt;

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, numbered, word, words};
use super::text::write_rows;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::State;

pub(super) fn read(state: &State<'_, '_>) -> Result<Registers> {
    let mut registers = Registers::default();
    registers.put_each(state, &[("psw.mask", "env.psw.mask"), ("psw.addr", "env.psw.addr")])?;
    registers.put_array(state, "env.regs", numbered("r", 16))?;
    let (fpu, vectors) = (state.subsection("cpu/fpu"), state.subsection("cpu/vregs"));
    for nth in 0..32 {
        // The high half of the first sixteen is the floating point register.
        let high = if nth < 16 { fpu } else { vectors };
        let half = |state: Option<&State<'_, '_>>, half: u8| {
            state.and_then(|state| word(state, &format!("env.vregs[{nth}][{half}]")).ok())
        };
        match (half(high, 0), half(vectors, 1)) {
            (Some(high), Some(low)) => registers.put_words(format!("v{nth}"), vec![low, high]),
            (Some(high), None) => registers.put(format!("f{nth}"), high),
            _ => {}
        }
    }
    if let Some(fpu) = fpu {
        registers.put_some(fpu, &[("fpc", "env.fpc")]);
    }
    registers.put_array(state, "env.cregs", numbered("c", 16))?;
    registers.put_array(state, "env.aregs", numbered("a", 16))?;
    let rest = [
        ("prefix", "env.psa"),
        ("todpr", "env.todpr"),
        ("cputm", "env.cputm"),
        ("ckc", "env.ckc"),
        ("gbea", "env.gbea"),
        ("pp", "env.pp"),
        ("cpu_state", "env.cpu_state"),
    ];
    registers.put_some(state, &rest);
    let guarded = state.subsection("cpu/gscb").map(|state| words(state, "env.gscb")).unwrap_or_default();
    for (nth, word) in guarded.into_iter().take(4).enumerate() {
        registers.put(format!("gs{nth}"), word);
    }
    Ok(registers)
}

/// What Linux's `elf.h` calls `NT_S390_…`.
mod nt_s390 {
    pub(super) const TIMER: u32 = 0x301;
    pub(super) const TODCMP: u32 = 0x302;
    pub(super) const TODPREG: u32 = 0x303;
    pub(super) const CTRS: u32 = 0x304;
    pub(super) const PREFIX: u32 = 0x305;
    pub(super) const VXRS_LOW: u32 = 0x309;
    pub(super) const VXRS_HIGH: u32 = 0x30a;
    pub(super) const GS_CB: u32 = 0x30b;
}

/// The halves of a vector register, low and high, whether the processor has
/// vectors or floating point alone.
fn halves(vcpu: &Vcpu, nth: usize) -> [u64; 2] {
    match vcpu.register(&format!("f{nth}")) {
        Some(high) => [0, high],
        None => vcpu.pair(&format!("v{nth}")),
    }
}

pub(super) fn notes(vcpu: &Vcpu) -> Vec<Note> {
    let mut prstatus = Desc::prstatus_64(vcpu, true);
    prstatus.registers(vcpu, ["psw.mask", "psw.addr"]);
    prstatus.registers(vcpu, numbered("r", 16));
    numbered("a", 16).for_each(|name| prstatus.word_32(vcpu.get(&name)));
    prstatus.zeros(16);

    let mut fpu = Desc::new(true);
    fpu.word_32(vcpu.get("fpc"));
    fpu.zeros(4);
    (0..16).for_each(|nth| fpu.word_64(halves(vcpu, nth)[1]));

    let mut low = Desc::new(true);
    (0..16).for_each(|nth| low.word_64(halves(vcpu, nth)[0]));
    let mut high = Desc::new(true);
    (16..32).for_each(|nth| high.word_128(halves(vcpu, nth)));

    vec![
        prstatus.note("CORE", nt::PRSTATUS),
        fpu.note("CORE", nt::PRFPREG),
        one(vcpu, "prefix", 4, nt_s390::PREFIX),
        row(vcpu, numbered("c", 16), nt_s390::CTRS),
        one(vcpu, "cputm", 8, nt_s390::TIMER),
        one(vcpu, "ckc", 8, nt_s390::TODCMP),
        one(vcpu, "todpr", 4, nt_s390::TODPREG),
        low.note("LINUX", nt_s390::VXRS_LOW),
        high.note("LINUX", nt_s390::VXRS_HIGH),
        row(vcpu, numbered("gs", 4), nt_s390::GS_CB),
    ]
}

/// A note of one register.
fn one(vcpu: &Vcpu, name: &str, len: usize, kind: u32) -> Note {
    let mut desc = Desc::new(true);
    match len {
        4 => desc.word_32(vcpu.get(name)),
        _ => desc.word_64(vcpu.get(name)),
    }
    desc.note("LINUX", kind)
}

/// A note of registers of 64 bits.
fn row(vcpu: &Vcpu, names: impl Iterator<Item = String>, kind: u32) -> Note {
    let mut desc = Desc::new(true);
    desc.registers(vcpu, names);
    desc.note("LINUX", kind)
}

pub(super) fn write(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    let mask = vcpu.get("psw.mask");
    writeln!(f, "PSW=mask {mask:016x} addr {:016x} cc {:02x}", vcpu.get("psw.addr"), mask >> 44 & 3)?;
    let row = |prefix: char, name: &'static str| {
        numbered(name, 16)
            .enumerate()
            .map(move |(nth, name)| format!("{prefix}{nth:02}={:016x}", vcpu.get(&name)))
    };
    write_rows(f, 4, row('R', "r"))?;
    match vcpu.register("f0") {
        Some(_) => write_rows(f, 4, row('F', "f"))?,
        None => {
            let vector = |nth| {
                let [low, high] = halves(vcpu, nth);
                format!("V{nth:02}={high:016x}{low:016x}")
            };
            write_rows(f, 2, (0..32).map(vector))?;
        }
    }
    writeln!(f, "FPC={:08x}", vcpu.get("fpc"))?;
    write_rows(f, 4, row('C', "c"))?;
    writeln!(f)
}
