//! The registers of each vCPU, out of its `cpu` section.
//!
//! ```text
//! section cpu, instance id = index           registers
//! section cpu_common, the same instance id   halted or not
//! ```
//!
//! [`vcpus`] reads them. A [`Vcpu`] prints them as QEMU's `info registers` does,
//! and [`notes`] has them as QEMU's core files do.
//!
//! What `info registers` shows and a stream does not hold is left out, or said
//! to be 0: caches of QEMU's own (POWER's `HF`, `iidx`, `didx`), counters that
//! only the running machine has (POWER's `TB` and `DECR`), what the model of
//! processor has (`BTYPE` of Arm), exception flags that QEMU does not save
//! (RISC-V's `fflags`).
//!
//! Source followed: QEMU `target/*/machine.c`, and `cpu_dump_state` and
//! `arch_dump.c` of each target.

mod arm;
mod loongarch;
mod note;
mod ppc64;
mod registers;
mod riscv;
mod s390x;
mod text;
mod x86;
mod x86_text;

use std::collections::HashMap;
use std::fmt;

pub use note::{CoreKind, core_kind, notes};

use crate::arch::Architecture;
use crate::error::{Error, Result};
use crate::stream::{Device, Stream};
use crate::vmstate::State;
use registers::Registers;

/// A vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// QEMU's `cpu_index`: the section's instance id.
    pub index: u32,
    /// What kind it is.
    pub architecture: Architecture,
    /// Whether it waits for an interrupt. `None` if the stream does not say.
    pub halted: Option<bool>,
    registers: Registers,
}

/// The vCPUs of a stream.
#[derive(Debug, Default)]
pub struct Vcpus {
    /// Those that could be read, by index.
    pub vcpus: Vec<Vcpu>,
    /// Why others could not.
    pub failures: Vec<Error>,
}

/// The vCPUs of a stream: none of an architecture that is not an
/// [`Architecture`].
pub fn vcpus(stream: &Stream<'_>) -> Vcpus {
    let Some(architecture) = Architecture::of(stream) else { return Vcpus::default() };
    let mut vcpus = Vcpus::default();
    let common = common(stream);
    for device in stream.devices().filter(|device| device.section.handler.idstr == "cpu") {
        let index = device.section.handler.instance_id;
        match read(stream, &device, architecture) {
            Ok((architecture, registers)) => {
                let halted = common.get(&index).and_then(halted);
                vcpus.vcpus.push(Vcpu { index, architecture, halted, registers });
            }
            Err(error) => vcpus.failures.push(error.inside(format!("registers of vCPU {index}"))),
        }
    }
    vcpus.vcpus.sort_by_key(|vcpu| vcpu.index);
    vcpus
}

/// The registers of a section, and what kind of processor has them.
fn read(
    stream: &Stream<'_>,
    device: &Device<'_>,
    architecture: Architecture,
) -> Result<(Architecture, Registers)> {
    let state = device.decode()?;
    let registers = match architecture {
        Architecture::X86_64 | Architecture::I386 => return x86::read(&state),
        Architecture::Aarch64 | Architecture::Arm => return arm::read(&state),
        Architecture::Ppc64 => ppc64::read(&state, has_hypervisor_mode(stream)),
        Architecture::S390x => s390x::read(&state),
        Architecture::Riscv64 => riscv::read(&state),
        Architecture::Loongarch64 => loongarch::read(&state),
    };
    Ok((architecture, registers?))
}

/// Whether POWER guests are hypervisors of their own: on pseries QEMU is theirs.
fn has_hypervisor_mode(stream: &Stream<'_>) -> bool {
    stream
        .configuration()
        .is_some_and(|configuration| configuration.machine.as_bytes().starts_with(b"powernv"))
}

/// The first `cpu_common` of each index: a stream can have 2¹⁸ of vCPUs and of these.
fn common<'s>(stream: &'s Stream<'_>) -> HashMap<u32, Device<'s>> {
    let mut common = HashMap::new();
    for device in stream.devices().filter(|device| device.section.handler.idstr == "cpu_common") {
        common.entry(device.section.handler.instance_id).or_insert(device);
    }
    common
}

fn halted(common: &Device<'_>) -> Option<bool> {
    let state: State<'_, '_> = common.decode().ok()?;
    state.field("halted")?.value.as_u64().map(|halted| halted != 0)
}

impl Vcpu {
    /// The registers by name, in the order of QEMU's `info registers`, others
    /// behind. Each is one word of up to 64 bits, or several of 64, lowest
    /// first.
    pub fn registers(&self) -> impl ExactSizeIterator<Item = (&str, &[u64])> {
        self.registers.iter()
    }

    /// A register by name, if it is one word.
    pub fn register(&self, name: &str) -> Option<u64> {
        match self.registers.words(name) {
            Some([word]) => Some(*word),
            _ => None,
        }
    }

    /// A register that is there, or 0.
    fn get(&self, name: &str) -> u64 {
        self.registers.word(name, 0)
    }

    /// The first two words of a register, lowest first; 0 where there is none.
    fn pair(&self, name: &str) -> [u64; 2] {
        [0, 1].map(|nth| self.registers.word(name, nth))
    }
}

impl fmt::Display for Vcpu {
    /// As `info registers` of QEMU 10 prints it: many lines, each with its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.architecture {
            Architecture::X86_64 | Architecture::I386 => x86_text::write(f, self),
            Architecture::Aarch64 => arm::write_64(f, self),
            Architecture::Arm => arm::write_32(f, self),
            Architecture::Ppc64 => ppc64::write(f, self),
            Architecture::S390x => s390x::write(f, self),
            Architecture::Riscv64 => riscv::write(f, self),
            Architecture::Loongarch64 => loongarch::write(f, self),
        }
    }
}
