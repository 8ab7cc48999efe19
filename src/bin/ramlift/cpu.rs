//! `ramlift cpu`: the registers of each vCPU.

use std::io::{self, Write};

use ramlift::Stream;
use ramlift::cpu::{self, Vcpu};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::args::CpuArgs;
use crate::exit::{Exit, Failure};
use crate::{source, terminal};

/// `ramlift cpu --json`.
#[derive(serde::Serialize)]
struct Report<'v> {
    ramlift: &'static str,
    machine: Option<String>,
    vcpus: Vec<VcpuReport<'v>>,
    warnings: Vec<String>,
}

#[derive(serde::Serialize)]
struct VcpuReport<'v> {
    index: u32,
    architecture: &'static str,
    halted: Option<bool>,
    registers: RegistersJson<'v>,
}

struct RegistersJson<'v>(&'v Vcpu);

impl Serialize for RegistersJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, words) in self.0.registers() {
            match words {
                [word] => map.serialize_entry(name, word)?,
                words => map.serialize_entry(name, words)?,
            }
        }
        map.end()
    }
}

pub(crate) fn run(args: &CpuArgs) -> Result<Exit, Failure> {
    source::with_stream(&args.source, |stream, origin| {
        let vcpus = cpu::vcpus(stream);
        if vcpus.vcpus.is_empty() && vcpus.failures.is_empty() {
            let path = args.source.stream.display();
            let why = why_none(stream);
            return Err(Failure::Other(format!("{path}: {why}")));
        }
        let warnings: Vec<String> =
            origin.warnings.iter().cloned().chain(vcpus.failures.iter().map(ToString::to_string)).collect();
        if args.json {
            let report = Report {
                ramlift: env!("CARGO_PKG_VERSION"),
                machine: stream.configuration().map(|configuration| configuration.machine.to_string()),
                vcpus: vcpus.vcpus.iter().map(report).collect(),
                warnings,
            };
            terminal::print_json(&report)?;
        } else {
            let mut out = terminal::stdout();
            write_text(&mut out, &vcpus.vcpus).map_err(Failure::stdout)?;
            terminal::finish(out)?;
            warnings.iter().for_each(|warning| terminal::say(format_args!("warning: {warning}")));
        }
        Ok(Exit::of(origin.is_damaged || !vcpus.failures.is_empty()))
    })
}

/// Why no vCPU can be read, nor fails to be.
pub(crate) fn why_none(stream: &Stream<'_>) -> &'static str {
    match (stream.vcpu_count(), stream.description()) {
        (0, None) => {
            "vCPUs cannot be read: the stream has no description of its devices (machine type 2.2 or older, or saved so)"
        }
        (0, Some(_)) => "the stream has no vCPU",
        _ => "vCPUs of an architecture whose registers are not known; `ramlift state --device cpu` has them",
    }
}

fn report(vcpu: &Vcpu) -> VcpuReport<'_> {
    VcpuReport {
        index: vcpu.index,
        architecture: vcpu.architecture.name(),
        halted: vcpu.halted,
        registers: RegistersJson(vcpu),
    }
}

/// As QEMU's `info registers -a` has it.
fn write_text(out: &mut impl Write, vcpus: &[Vcpu]) -> io::Result<()> {
    vcpus.iter().try_for_each(|vcpu| write!(out, "\nCPU#{}\n{vcpu}", vcpu.index))
}
