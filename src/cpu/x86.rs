//! x86: registers, and their notes.
//!
//! Source followed: QEMU `target/i386/machine.c`, `target/i386/arch_dump.c`.

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, fields, missing, numbered, word, words};
use crate::arch::Architecture;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::{Field, State};

/// `HF_LMA_MASK` of QEMU's `hflags`: in long mode.
const LONG_MODE: u64 = 1 << 14;

/// The registers of general use, as the processor numbers them.
const GENERAL: [&str; 8] = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];

/// Segment registers as QEMU numbers them.
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

pub(super) fn is_long_mode(vcpu: &Vcpu) -> bool {
    vcpu.get("hflags") & LONG_MODE != 0
}

/// The registers, and whether the QEMU is one of 64 bits.
pub(super) fn read(state: &State<'_, '_>) -> Result<(Architecture, Registers)> {
    let mut registers = Registers::default();
    // A 32-bit QEMU has the first eight; one with APX has 32.
    let count = words(state, "env.regs").len();
    let names = GENERAL.iter().map(|name| (*name).to_owned()).chain((8..32).map(|nth| format!("r{nth}")));
    registers.put_array(state, "env.regs", names.take(count.max(GENERAL.len())))?;
    registers.put_each(state, &[("rip", "env.eip"), ("eflags", "env.eflags"), ("hflags", "env.hflags")])?;
    let mut segments = fields(state, "env.segs");
    for name in SEGMENTS {
        put_segment(&mut registers, name, segments.next().ok_or_else(|| missing("env.segs"))?)?;
    }
    for (name, field) in [("ldt", "env.ldt"), ("tr", "env.tr"), ("gdt", "env.gdt"), ("idt", "env.idt")] {
        put_segment(&mut registers, name, state.field(field).ok_or_else(|| missing(field))?)?;
    }
    let control = [("cr0", "env.cr[0]"), ("cr2", "env.cr[2]"), ("cr3", "env.cr[3]"), ("cr4", "env.cr[4]")];
    registers.put_each(state, &control)?;
    registers.put_array(state, "env.dr", numbered("dr", 8))?;
    put_rest(&mut registers, state);
    put_x87(&mut registers, state);
    put_vectors(&mut registers, state);
    let architecture = if count > GENERAL.len() { Architecture::X86_64 } else { Architecture::I386 };
    Ok((architecture, registers))
}

fn put_segment(registers: &mut Registers, name: &str, field: &Field<'_, '_>) -> Result<()> {
    let segment = field.value.as_struct().ok_or_else(|| missing(&field.desc.name))?;
    registers.put(name, word(segment, "selector")?);
    for part in ["base", "limit", "flags"] {
        registers.put(format!("{name}.{part}"), word(segment, part)?);
    }
    Ok(())
}

fn put_rest(registers: &mut Registers, state: &State<'_, '_>) {
    let rest = [
        ("efer", "env.efer"),
        ("fcw", "env.fpuc"),
        ("fsw", "env.fpus_vmstate"),
        ("ftw", "env.fptag_vmstate"),
        ("mxcsr", "env.mxcsr"),
        ("star", "env.star"),
        ("lstar", "env.lstar"),
        ("cstar", "env.cstar"),
        ("fmask", "env.fmask"),
        ("kernelgsbase", "env.kernelgsbase"),
        ("sysenter_cs", "env.sysenter_cs"),
        ("sysenter_esp", "env.sysenter_esp"),
        ("sysenter_eip", "env.sysenter_eip"),
        ("pat", "env.pat"),
        ("tsc", "env.tsc"),
        ("tsc_aux", "env.tsc_aux"),
        ("xcr0", "env.xcr0"),
        ("smbase", "env.smbase"),
        ("a20_mask", "env.a20_mask"),
    ];
    registers.put_some(state, &rest);
}

/// `fpr0` to `fpr7`, by their place and not by the stack: 64 bits of mantissa,
/// then 16 of sign and exponent.
fn put_x87(registers: &mut Registers, state: &State<'_, '_>) {
    for (nth, field) in fields(state, "env.fpregs").take(8).enumerate() {
        let Some(register) = field.value.as_struct() else { continue };
        // Since QEMU 2.11 the parts stand in a structure of their own.
        let parts = register.field("tmp").and_then(|tmp| tmp.value.as_struct()).unwrap_or(register);
        if let (Ok(mantissa), Ok(exponent)) = (word(parts, "tmp_mant"), word(parts, "tmp_exp")) {
            registers.put_words(format!("fpr{nth}"), vec![mantissa, exponent]);
        }
    }
}

/// `xmm0` and on: 2 words of SSE, 4 of AVX, 8 of AVX-512, which also has more
/// of them and `opmask0` to `opmask7`.
fn put_vectors(registers: &mut Registers, state: &State<'_, '_>) {
    let wide = state.subsection("cpu/avx512");
    let mut vectors = vec![Vec::new(); 32];
    for state in std::iter::once(state).chain(wide) {
        // Each list of the lower sixteen has further words of all; the upper
        // sixteen are whole.
        let mut last = ("", 0);
        for field in state.fields.iter().filter(|field| field.desc.name.starts_with("env.xmm_regs")) {
            let Some(lanes) = field.value.as_struct() else { continue };
            let first = lanes.fields.first().map_or("", |field| field.desc.name.as_str());
            last = if last.0 == first { (first, last.1 + 1) } else { (first, 0) };
            let base = if lanes.fields.len() > 4 { 16 } else { 0 };
            if let Some(vector) = vectors.get_mut(base + last.1) {
                vector.extend(lanes.fields.iter().filter_map(|lane| lane.value.as_u64()));
            }
        }
    }
    for (nth, words) in vectors.into_iter().enumerate().filter(|(_, words)| !words.is_empty()) {
        registers.put_words(format!("xmm{nth}"), words);
    }
    for (nth, mask) in
        wide.map(|state| words(state, "env.opmask_regs")).into_iter().flatten().take(8).enumerate()
    {
        registers.put(format!("opmask{nth}"), mask);
    }
}

/// `NT_PRSTATUS` in long mode: Linux's `user_regs_struct` of x86-64.
pub(super) fn prstatus_64(vcpu: &Vcpu) -> Note {
    const ORDER: [&str; 27] = [
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
        "rdi", "", "rip", "cs", "eflags", "rsp", "ss", "fs.base", "gs.base", "ds", "es", "fs", "gs",
    ];
    let mut desc = Desc::prstatus_64(vcpu, false);
    desc.registers(vcpu, ORDER);
    desc.zeros(8);
    desc.note("CORE", nt::PRSTATUS)
}

/// `NT_PRSTATUS` in other modes: Linux's `user_regs_struct` of i386.
pub(super) fn prstatus_32(vcpu: &Vcpu) -> Note {
    const GENERAL: [&str; 7] = ["rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax"];
    let mut desc = Desc::prstatus_32(vcpu, false);
    GENERAL.iter().for_each(|name| desc.word_32(vcpu.get(name)));
    ["ds", "es", "fs", "gs"].iter().for_each(|name| desc.selector(vcpu.get(name)));
    ["", "rip"].iter().for_each(|name| desc.word_32(vcpu.get(name)));
    desc.selector(vcpu.get("cs"));
    ["eflags", "rsp"].iter().for_each(|name| desc.word_32(vcpu.get(name)));
    desc.selector(vcpu.get("ss"));
    desc.zeros(4);
    desc.note("CORE", nt::PRSTATUS)
}

/// QEMU's own note: what `NT_PRSTATUS` lacks.
///
/// ```text
/// 32 bits version 1, 32 bits size | registers, rip, rflags | 10 segments | cr0 … cr4 | kernelgsbase
/// segment: 32 bits selector, limit, flags, nothing, 64 bits base
/// ```
pub(super) fn qemu_note(vcpu: &Vcpu) -> Note {
    const GENERAL: [&str; 18] = [
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "rip", "eflags",
    ];
    const SEGMENTS: [&str; 10] = ["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"];
    const SIZE: u64 = 440;
    let mut desc = Desc::new(false);
    desc.word_32(1);
    desc.word_32(SIZE);
    desc.registers(vcpu, GENERAL);
    for name in SEGMENTS {
        desc.word_32(vcpu.get(name));
        desc.word_32(vcpu.get(&format!("{name}.limit")));
        desc.word_32(vcpu.get(&format!("{name}.flags")));
        desc.zeros(4);
        desc.word_64(vcpu.get(&format!("{name}.base")));
    }
    desc.registers(vcpu, ["cr0", "", "cr2", "cr3", "cr4", "kernelgsbase"]);
    desc.note("QEMU", 0)
}
