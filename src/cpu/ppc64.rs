//! POWER: registers, their notes and text.
//!
//! Source followed: QEMU `target/ppc/machine.c`, `arch_dump.c`, `cpu_init.c`
//! (`ppc_cpu_dump_state`).

use std::fmt;

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, fields, missing, numbered, word, words};
use super::text::write_rows;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::{State, Value};

/// Special-purpose registers that are told, by their numbers.
const SPECIAL: [(&str, usize); 28] = [
    ("lr", 8),
    ("ctr", 9),
    ("xer", 1),
    ("hid0", 1008),
    ("srr0", 26),
    ("srr1", 27),
    ("pvr", 287),
    ("vrsave", 256),
    ("sprg0", 272),
    ("sprg1", 273),
    ("sprg2", 274),
    ("sprg3", 275),
    ("sprg4", 276),
    ("sprg5", 277),
    ("sprg6", 278),
    ("sprg7", 279),
    ("hsrr0", 314),
    ("hsrr1", 315),
    ("cfar", 28),
    ("lpcr", 318),
    ("sdr1", 25),
    ("ptcr", 464),
    ("dar", 19),
    ("dsisr", 18),
    ("pidr", 48),
    ("tar", 815),
    ("dscr", 17),
    ("amr", 29),
];

/// Big endian unless it takes interrupts as little endian: the bits that say
/// so, in LPCR, and in HID0 of what is its own hypervisor.
const LPCR_ILE: u64 = 1 << 25;
const HID0_HILE: u64 = 1 << 44;
const HID0_POWER9_HILE: u64 = 1 << 59;
/// The version in PVR of the last that has the older of both bits.
const POWER8: [u64; 3] = [0x4b, 0x4c, 0x4d];
const POWER11: u64 = 0x82;

pub(super) fn is_big_endian(vcpu: &Vcpu) -> bool {
    let is_old = POWER8.contains(&(vcpu.get("pvr") >> 16));
    let (register, bit) = match (vcpu.register("hv").is_some(), is_old) {
        (false, _) => ("lpcr", LPCR_ILE),
        (true, true) => ("hid0", HID0_HILE),
        (true, false) => ("hid0", HID0_POWER9_HILE),
    };
    vcpu.get(register) & bit == 0
}

pub(super) fn read(state: &State<'_, '_>, has_hypervisor_mode: bool) -> Result<Registers> {
    let mut registers = Registers::default();
    registers.put_each(state, &[("nip", "env.nip"), ("msr", "env.msr")])?;
    registers.put_array(state, "env.gpr", numbered("r", 32))?;
    let condition = words(state, "env.crf").iter().take(8).fold(0, |all, field| all << 4 | field & 15);
    registers.put("cr", condition);
    registers.put_some(state, &[("reserve_addr", "env.reserve_addr")]);
    let special = words(state, "env.spr");
    for (name, nth) in SPECIAL {
        registers.put(name, special.get(nth).copied().ok_or_else(|| missing("env.spr"))?);
    }
    if has_hypervisor_mode {
        registers.put("hv", 1);
    }
    put_vectors(&mut registers, state);
    registers.put_some(state, &[("spe_acc", "env.spe_acc")]);
    Ok(registers)
}

/// `vsr0` to `vsr31`, whose high half is the floating point register, and
/// `vr0` to `vr31`, which are the other 32 of VSX.
fn put_vectors(registers: &mut Registers, state: &State<'_, '_>) {
    let of = |name: &str| state.subsection(name);
    let list = |name: &str| of(name).map(|state| words(state, "env.vsr")).unwrap_or_default();
    let (high, low) = (list("cpu/fpu"), list("cpu/vsx"));
    for (nth, high) in high.into_iter().take(32).enumerate() {
        registers.put_words(format!("vsr{nth}"), vec![low.get(nth).copied().unwrap_or(0), high]);
    }
    if let Some(fpu) = of("cpu/fpu") {
        registers.put_some(fpu, &[("fpscr", "env.fpscr")]);
    }
    let Some(altivec) = of("cpu/altivec") else { return };
    // As the host has them, the low half first on all hosts but big-endian ones.
    for (nth, field) in fields(altivec, "env.vsr").take(32).enumerate() {
        if let Value::Words(words) = &field.value {
            registers.put_words(format!("vr{nth}"), words.clone());
        }
    }
    if let Ok(vscr) = word(altivec, "vscr") {
        registers.put("vscr", vscr);
    }
}

/// What Linux's `elf.h` calls `NT_PPC_…`.
mod nt_ppc {
    pub(super) const VMX: u32 = 0x100;
    pub(super) const SPE: u32 = 0x101;
    pub(super) const VSX: u32 = 0x102;
}

pub(super) fn notes(vcpu: &Vcpu, is_big_endian: bool) -> Vec<Note> {
    let mut prstatus = Desc::prstatus_64(vcpu, is_big_endian);
    prstatus.registers(vcpu, numbered("r", 32));
    prstatus.registers(vcpu, ["nip", "msr", "", "ctr", "lr", "xer", "cr"]);
    prstatus.zeros(5 * 8 + 40);

    let mut fpu = Desc::new(is_big_endian);
    (0..32).for_each(|nth| fpu.word_64(vcpu.pair(&format!("vsr{nth}"))[1]));
    fpu.registers(vcpu, ["fpscr"]);

    let mut vmx = Desc::new(is_big_endian);
    (0..32).for_each(|nth| vmx.word_128(vcpu.pair(&format!("vr{nth}"))));
    vmx.zeros(12);
    vmx.word_32(vcpu.get("vscr"));
    vmx.zeros(16);

    let mut vsx = Desc::new(is_big_endian);
    vsx.registers(vcpu, numbered("vsr", 32));

    let mut spe = Desc::new(is_big_endian);
    spe.zeros(32 * 4);
    spe.registers(vcpu, ["spe_acc"]);
    spe.zeros(4);

    vec![
        prstatus.note("CORE", nt::PRSTATUS),
        fpu.note("CORE", nt::PRFPREG),
        vmx.note("CORE", nt_ppc::VMX),
        vsx.note("CORE", nt_ppc::VSX),
        spe.note("CORE", nt_ppc::SPE),
    ]
}

pub(super) fn write(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    let get = |name: &str| vcpu.get(name);
    let (nip, lr, ctr, xer) = (get("nip"), get("lr"), get("ctr"), get("xer"));
    writeln!(f, "NIP {nip:016x}   LR {lr:016x} CTR {ctr:016x} XER {xer:016x} CPU#{}", vcpu.index)?;
    writeln!(f, "MSR {:016x} HID0 {:016x}", get("msr"), get("hid0"))?;
    let row = |label: &'static str, value: &dyn Fn(usize) -> u64| {
        let mut cells: Vec<String> = (0..32).map(|nth| format!("{:016x}", value(nth))).collect();
        let first = cells.iter_mut().enumerate().step_by(4);
        first.for_each(|(nth, cell)| *cell = format!("{label}{nth:02} {cell}"));
        cells
    };
    write_rows(f, 4, row("GPR", &|nth| get(&format!("r{nth}"))))?;
    write_condition(f, vcpu)?;
    write_rows(f, 4, row("FPR", &|nth| vcpu.pair(&format!("vsr{nth}"))[1]))?;
    writeln!(f, "FPSCR {:016x}", get("fpscr"))?;
    let lines: [[(&str, &str); 4]; 3] = [
        [(" SRR0", "srr0"), (" SRR1", "srr1"), ("   PVR", "pvr"), ("VRSAVE", "vrsave")],
        [("SPRG0", "sprg0"), ("SPRG1", "sprg1"), (" SPRG2", "sprg2"), (" SPRG3", "sprg3")],
        [("SPRG4", "sprg4"), ("SPRG5", "sprg5"), (" SPRG6", "sprg6"), (" SPRG7", "sprg7")],
    ];
    for line in lines {
        let cells = line.map(|(label, name)| format!("{label} {:016x}", get(name)));
        writeln!(f, "{}", cells.join(" "))?;
    }
    // QEMU does not take POWER11 for one that has them.
    if get("pvr") >> 16 != POWER11 {
        writeln!(f, "HSRR0 {:016x} HSRR1 {:016x}", get("hsrr0"), get("hsrr1"))?;
    }
    writeln!(f, " CFAR {:016x}", get("cfar"))?;
    writeln!(f, " LPCR {:016x}", get("lpcr"))?;
    writeln!(f, " PTCR {:016x}   DAR {:016x}  DSISR {:016x}", get("ptcr"), get("dar"), get("dsisr"))
}

/// The fields of CR: less, greater, equal, overflow.
fn write_condition(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    let condition = vcpu.get("cr");
    write!(f, "CR {condition:08x}  [")?;
    for field in (0..8).rev().map(|nth| condition >> (4 * nth)) {
        let order = match field {
            field if field & 8 != 0 => 'L',
            field if field & 4 != 0 => 'G',
            field if field & 2 != 0 => 'E',
            _ => '-',
        };
        write!(f, " {order}{}", if field & 1 != 0 { 'O' } else { ' ' })?;
    }
    // Not saved since QEMU 11.
    match vcpu.register("reserve_addr") {
        Some(address) => writeln!(f, " ]             RES {address:016x}"),
        None => writeln!(f, " ]"),
    }
}
