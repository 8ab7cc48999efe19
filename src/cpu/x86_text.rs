//! x86 registers as QEMU's `info registers` prints them.
//!
//! Source followed: QEMU `target/i386/cpu-dump.c` (`x86_cpu_dump_state`).

use std::fmt;

use super::Vcpu;
use super::text::write_rows;
use crate::arch::Architecture;

/// Bits of QEMU's own `hflags`.
mod hflag {
    pub(super) const CPL: u64 = 3;
    pub(super) const INHIBIT_IRQ: u32 = 3;
    pub(super) const PE: u64 = 1 << 7;
    pub(super) const LMA: u64 = 1 << 14;
    pub(super) const CS64: u64 = 1 << 15;
    pub(super) const SMM: u32 = 19;
}

/// Bits of the second word of a descriptor, which QEMU keeps as `flags`.
mod desc {
    pub(super) const ACCESSED: u64 = 1 << 8;
    pub(super) const READ_WRITE: u64 = 1 << 9;
    pub(super) const CONFORMING_DOWN: u64 = 1 << 10;
    pub(super) const CODE: u64 = 1 << 11;
    pub(super) const SEGMENT: u64 = 1 << 12;
    pub(super) const PRESENT: u64 = 1 << 15;
    pub(super) const LONG: u64 = 1 << 21;
    pub(super) const BIG: u64 = 1 << 22;
}

const SYSTEM_32: [&str; 16] = [
    "Reserved",
    "TSS16-avl",
    "LDT",
    "TSS16-busy",
    "CallGate16",
    "TaskGate",
    "IntGate16",
    "TrapGate16",
    "Reserved",
    "TSS32-avl",
    "Reserved",
    "TSS32-busy",
    "CallGate32",
    "Reserved",
    "IntGate32",
    "TrapGate32",
];
const SYSTEM_64: [&str; 16] = [
    "<hiword>",
    "Reserved",
    "LDT",
    "Reserved",
    "Reserved",
    "Reserved",
    "Reserved",
    "Reserved",
    "Reserved",
    "TSS64-avl",
    "Reserved",
    "TSS64-busy",
    "CallGate64",
    "Reserved",
    "IntGate64",
    "TrapGate64",
];

/// States that XCR0 enables.
mod xcr0 {
    /// Those of SSE and AVX.
    pub(super) const AVX: u64 = 1 << 1 | 1 << 2;
    /// Those, and the three of AVX-512.
    pub(super) const AVX512: u64 = AVX | 1 << 5 | 1 << 6 | 1 << 7;
}

pub(super) fn write(f: &mut fmt::Formatter<'_>, cpu: &Vcpu) -> fmt::Result {
    write_general(f, cpu)?;
    for name in ["ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"] {
        write_segment(f, cpu, name)?;
    }
    write_control(f, cpu)?;
    write_x87(f, cpu)?;
    write_vectors(f, cpu)
}

fn write_general(f: &mut fmt::Formatter<'_>, cpu: &Vcpu) -> fmt::Result {
    const LONG: [[&str; 4]; 4] = [
        ["RAX", "RBX", "RCX", "RDX"],
        ["RSI", "RDI", "RBP", "RSP"],
        ["R8", "R9", "R10", "R11"],
        ["R12", "R13", "R14", "R15"],
    ];
    let is_long = cpu.get("hflags") & hflag::CS64 != 0;
    for line in LONG.iter().take(if is_long { 4 } else { 2 }) {
        let shown = line.map(|name| {
            let value = cpu.get(&name.to_lowercase());
            match is_long {
                true => format!("{name:<3}={value:016x}"),
                false => format!("E{}={:08x}", name.trim_start_matches('R'), value & 0xffff_ffff),
            }
        });
        writeln!(f, "{}", shown.join(" "))?;
    }
    // APX has sixteen more.
    let further = (16..32).filter_map(|nth| Some((nth, cpu.register(&format!("r{nth}"))?)));
    write_rows(f, 4, further.filter(|_| is_long).map(|(nth, value)| format!("R{nth}={value:016x}")))?;
    let (rip, eflags) = (cpu.get("rip"), cpu.get("eflags"));
    match is_long {
        true => write!(f, "RIP={rip:016x} RFL={eflags:08x}")?,
        false => write!(f, "EIP={:08x} EFL={eflags:08x}", rip & 0xffff_ffff)?,
    }
    let flags = [('D', 10), ('O', 11), ('S', 7), ('Z', 6), ('A', 4), ('P', 2), ('C', 0)];
    let flags: String =
        flags.map(|(name, bit)| if eflags >> bit & 1 != 0 { name } else { '-' }).iter().collect();
    let hflags = cpu.get("hflags");
    writeln!(
        f,
        " [{flags}] CPL={} II={} A20={} SMM={} HLT={}",
        hflags & hflag::CPL,
        hflags >> hflag::INHIBIT_IRQ & 1,
        cpu.get("a20_mask") >> 20 & 1,
        hflags >> hflag::SMM & 1,
        u8::from(cpu.halted.unwrap_or(false)),
    )
}

fn write_segment(f: &mut fmt::Formatter<'_>, cpu: &Vcpu, name: &str) -> fmt::Result {
    let key = name.to_lowercase();
    let part = |part: &str| cpu.get(&format!("{key}.{part}"));
    let (flags, hflags) = (part("flags"), cpu.get("hflags"));
    let has = |bit: u64| flags & bit != 0;
    write!(f, "{name:<3}={:04x} ", cpu.get(&key))?;
    match hflags & hflag::CS64 != 0 {
        true => write!(f, "{:016x}", part("base"))?,
        false => write!(f, "{:08x}", part("base") & 0xffff_ffff)?,
    }
    write!(f, " {:08x} {:08x}", part("limit"), flags & 0x00ff_ff00)?;
    if hflags & hflag::PE == 0 || !has(desc::PRESENT) {
        return writeln!(f);
    }
    write!(f, " DPL={} ", flags >> 13 & 3)?;
    let is_long_mode = hflags & hflag::LMA != 0;
    if !has(desc::SEGMENT) {
        let names = if is_long_mode { SYSTEM_64 } else { SYSTEM_32 };
        let kind = usize::try_from(flags >> 8 & 15).unwrap_or(0);
        return writeln!(f, "{}", names.get(kind).unwrap_or(&""));
    }
    let letter = |bit: u64, letter: char| if has(bit) { letter } else { '-' };
    let (kind, letters) = match has(desc::CODE) {
        true => {
            let kind = if has(desc::LONG) {
                "CS64"
            } else if has(desc::BIG) {
                "CS32"
            } else {
                "CS16"
            };
            (kind, [letter(desc::CONFORMING_DOWN, 'C'), letter(desc::READ_WRITE, 'R')])
        }
        false => {
            let kind = if has(desc::BIG) || is_long_mode { "DS  " } else { "DS16" };
            (kind, [letter(desc::CONFORMING_DOWN, 'E'), letter(desc::READ_WRITE, 'W')])
        }
    };
    writeln!(f, "{kind} [{}{}]", letters.iter().collect::<String>(), letter(desc::ACCESSED, 'A'))
}

fn write_control(f: &mut fmt::Formatter<'_>, cpu: &Vcpu) -> fmt::Result {
    let is_long_mode = cpu.get("hflags") & hflag::LMA != 0;
    let address = |name: &str| match is_long_mode {
        true => format!("{:016x}", cpu.get(name)),
        false => format!("{:08x}", cpu.get(name) & 0xffff_ffff),
    };
    for name in ["GDT", "IDT"] {
        let key = name.to_lowercase();
        writeln!(
            f,
            "{name}=     {} {:08x}",
            address(&format!("{key}.base")),
            cpu.get(&format!("{key}.limit"))
        )?;
    }
    let low = |name: &str| cpu.get(name) & 0xffff_ffff;
    writeln!(
        f,
        "CR0={:08x} CR2={} CR3={} CR4={:08x}",
        low("cr0"),
        address("cr2"),
        address("cr3"),
        low("cr4")
    )?;
    // As wide as QEMU's own longs.
    let width = if cpu.architecture == Architecture::X86_64 { 16 } else { 8 };
    for nth in 0..4 {
        write!(f, "DR{nth}={:0width$x} ", cpu.get(&format!("dr{nth}")))?;
    }
    writeln!(f, "\nDR6={:0width$x} DR7={:0width$x}", cpu.get("dr6"), cpu.get("dr7"))?;
    writeln!(f, "EFER={:016x}", cpu.get("efer"))
}

fn write_x87(f: &mut fmt::Formatter<'_>, cpu: &Vcpu) -> fmt::Result {
    let status = cpu.get("fsw");
    writeln!(
        f,
        "FCW={:04x} FSW={status:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
        cpu.get("fcw"),
        status >> 11 & 7,
        cpu.get("ftw") & 0xff,
        cpu.get("mxcsr"),
    )?;
    let registers = (0..8).map(|nth| {
        let [mantissa, exponent] = cpu.pair(&format!("fpr{nth}"));
        format!("FPR{nth}={mantissa:016x} {exponent:04x}")
    });
    write_rows(f, 2, registers)
}

/// As much of them as XCR0 enables.
fn write_vectors(f: &mut fmt::Formatter<'_>, cpu: &Vcpu) -> fmt::Result {
    let enabled = cpu.get("xcr0");
    let is_64 = cpu.get("hflags") & hflag::CS64 != 0;
    let (name, words, count) = match () {
        () if enabled & xcr0::AVX512 == xcr0::AVX512 => ("ZMM", 8, if is_64 { 32 } else { 8 }),
        () if enabled & xcr0::AVX == xcr0::AVX => ("YMM", 4, if is_64 { 16 } else { 8 }),
        () => ("XMM", 2, if is_64 { 16 } else { 8 }),
    };
    if words == 8 {
        let masks = (0..8).map(|nth| format!("Opmask{nth:02}={:016x}", cpu.get(&format!("opmask{nth}"))));
        write_rows(f, 4, masks)?;
    }
    let registers = (0..count).map(|nth| {
        let register = format!("xmm{nth}");
        let words: Vec<String> =
            (0..words).rev().map(|word| format!("{:016x}", cpu.registers.word(&register, word))).collect();
        format!("{name}{nth:02}={}", words.join(" "))
    });
    write_rows(f, if words == 2 { 2 } else { 1 }, registers)
}
