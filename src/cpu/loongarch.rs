//! LoongArch: registers, their notes and text.
//!
//! Source followed: QEMU `target/loongarch/machine.c`, `arch_dump.c`, `cpu.c`
//! (`loongarch_cpu_dump_state`).

use std::fmt;

use super::Vcpu;
use super::note::{Desc, nt};
use super::registers::{Registers, fields, numbered, words};
use super::text::write_rows;
use crate::error::Result;
use crate::physical::Note;
use crate::vmstate::State;

const CONTROL: [(&str, &str); 14] = [
    ("crmd", "env.CSR_CRMD"),
    ("prmd", "env.CSR_PRMD"),
    ("euen", "env.CSR_EUEN"),
    ("estat", "env.CSR_ESTAT"),
    ("era", "env.CSR_ERA"),
    ("badv", "env.CSR_BADV"),
    ("badi", "env.CSR_BADI"),
    ("eentry", "env.CSR_EENTRY"),
    ("tlbrentry", "env.CSR_TLBRENTRY"),
    ("tlbrbadv", "env.CSR_TLBRBADV"),
    ("tlbrera", "env.CSR_TLBRERA"),
    ("pgdl", "env.CSR_PGDL"),
    ("pgdh", "env.CSR_PGDH"),
    ("asid", "env.CSR_ASID"),
];

pub(super) fn read(state: &State<'_, '_>) -> Result<Registers> {
    let mut registers = Registers::default();
    registers.put_each(state, &[("pc", "env.pc")])?;
    registers.put_array(state, "env.gpr", numbered("r", 32))?;
    registers.put_some(state, &CONTROL);
    let prcfg = [("prcfg1", "env.CSR_PRCFG1"), ("prcfg2", "env.CSR_PRCFG2"), ("prcfg3", "env.CSR_PRCFG3")];
    registers.put_some(state, &prcfg);
    if let Some(fpu) = state.subsection("cpu/fpu") {
        registers.put_some(fpu, &[("fcsr0", "env.fcsr0")]);
        for (nth, field) in fields(fpu, "env.fpr").take(32).enumerate() {
            let low = match field.value.as_struct() {
                Some(register) => register.fields.first().and_then(|word| word.value.as_u64()),
                None => field.value.as_u64(),
            };
            if let Some(low) = low {
                registers.put(format!("f{nth}"), low);
            }
        }
        // A byte for each flag, the first one lowest.
        let flags = words(fpu, "env.cf");
        registers.put("fcc", flags.iter().take(8).rev().fold(0, |all, flag| all << 8 | flag & 0xff));
    }
    Ok(registers)
}

pub(super) fn notes(vcpu: &Vcpu) -> Vec<Note> {
    let mut prstatus = Desc::prstatus_64(vcpu, false);
    prstatus.registers(vcpu, numbered("r", 32));
    prstatus.zeros(8);
    prstatus.registers(vcpu, ["era", "badv"]);
    prstatus.zeros(10 * 8);
    prstatus.word_32(1);
    prstatus.zeros(4);

    let mut fpu = Desc::new(false);
    fpu.registers(vcpu, numbered("f", 32));
    fpu.registers(vcpu, ["fcc"]);
    fpu.word_32(vcpu.get("fcsr0"));
    vec![prstatus.note("CORE", nt::PRSTATUS), fpu.note("CORE", nt::PRFPREG)]
}

/// Control registers stand one to a line: QEMU's table of them changes with
/// what it knows.
pub(super) fn write(f: &mut fmt::Formatter<'_>, vcpu: &Vcpu) -> fmt::Result {
    let get = |name: &str| vcpu.get(name);
    writeln!(f, " PC={:016x}  FCSR0 0x{:08x}", get("pc"), get("fcsr0"))?;
    let mut general: Vec<String> =
        numbered("r", 32).map(|name| format!("{name} {:016x}", get(&name))).collect();
    let first = general.iter_mut().enumerate().step_by(4);
    first.for_each(|(nth, cell)| cell.insert_str(0, &format!(" GPR{nth:02}: ")));
    write_rows(f, 4, general)?;
    for (name, _) in CONTROL.iter().take(8) {
        writeln!(f, "{}={:016x}", name.to_uppercase(), get(name))?;
    }
    let prcfg =
        ["prcfg1", "prcfg2", "prcfg3"].map(|name| format!("{}={:016x}", name.to_uppercase(), get(name)));
    writeln!(f, "{}", prcfg.join(", "))?;
    for name in ["tlbrentry", "tlbrbadv", "tlbrera"] {
        writeln!(f, "{}={:016x}", name.to_uppercase(), get(name))?;
    }
    let mut cells: Vec<String> =
        numbered("f", 32).map(|name| format!("{name} {:016x}", get(&name))).collect();
    cells.iter_mut().step_by(4).for_each(|cell| cell.insert(0, ' '));
    write_rows(f, 4, cells)
}
