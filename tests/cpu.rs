//! Registers are those that QEMU itself prints and dumps.
//!
//! `tests/data/cpu` has streams of guests in whose registers a debugger has put
//! bytes of their own, with `info registers -a` and the notes of
//! `dump-guest-memory` at that instant: `scripts/check-physical --keep` makes them.

use std::fs;

use ramlift::Stream;
use ramlift::cpu;

mod support;

use support::cli::Workplace;
use support::fixtures::{data, unpack, unpack_file};
use support::hostile::in_time;
use support::physical::notes;
use support::synth::{Block, Records, Synth, subsection};

/// Streams of `tests/data/cpu`, by what they are of.
const GUESTS: [&str; 7] =
    ["x86_64-7.2", "i386-7.2", "aarch64-10.0", "arm-7.2", "ppc64-10.0", "riscv64-10.0", "s390x-10.0"];

fn stream(guest: &str) -> Vec<u8> {
    unpack_file(&format!("cpu/{guest}.zst"))
}

/// Compares what `ramlift cpu` prints, but for what `lines` changes in QEMU's.
fn check_text(stream: &[u8], expected: &str, lines: impl Fn(&str) -> Option<String>) {
    let place = Workplace::with(stream);
    let text = place.ramlift(&["cpu", "stream"]).expect_code(0).text().to_owned();
    let expected: Vec<String> = expected.lines().filter_map(lines).collect();
    assert_eq!(text.trim_start().lines().collect::<Vec<_>>(), expected);
}

fn registers(name: &str) -> String {
    fs::read_to_string(data(&format!("{name}.registers.txt"))).unwrap().trim_start().to_owned()
}

/// What is in QEMU's text and not in a stream: POWER's own caches and clocks.
fn told(line: &str) -> Option<String> {
    let line = line.split("  HF ").next()?.split("     RES ").next()?;
    (!line.starts_with("TB ")).then(|| line.to_owned())
}

#[test]
fn registers_are_printed_as_qemu_does() {
    for guest in GUESTS.iter().filter(|guest| **guest != "s390x-10.0") {
        check_text(&stream(guest), &registers(&format!("cpu/{guest}")), told);
    }
}

#[test]
fn ibm_z_has_its_fpc_as_in_qemu_11() {
    let expected = registers("cpu/s390x-10.0").replacen("C00=", "FPC=00000000\nC00=", 1);
    let text = Workplace::with(&stream("s390x-10.0")).ramlift(&["cpu", "stream"]).text().to_owned();
    // QEMU 10.0 does not print it: what it is stands in the notes, which are compared.
    let without = |text: &str| {
        let lines = text.trim().lines().filter(|line| !line.starts_with("FPC="));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without(&text), without(&expected));
    assert_eq!(text.lines().filter(|line| line.starts_with("FPC=")).count(), 1);
}

#[test]
fn registers_of_guests_that_ran_are_printed_as_qemu_does() {
    for name in [
        "pc-7.2-paused",
        "pc-10.0-paused",
        "pc-11.1-paused",
        "q35-10.0-paused",
        "q35-11.1-live",
        "microvm-10.0",
    ] {
        let expected = registers(name);
        // Some were printed of the first vCPU alone.
        let place = Workplace::with(&unpack(name));
        let text = place.ramlift(&["cpu", "stream"]).expect_code(0).text().to_owned();
        let count = expected.lines().count();
        let text: Vec<&str> = text.trim_start().lines().take(count).collect();
        assert_eq!(text, expected.lines().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn xmm_registers_of_qemu_5_are_the_same_in_another_form() {
    let split = |line: &str| {
        let cells = line.split(' ').map(|cell| match cell.split_once('=') {
            Some((name, value)) if name.starts_with("XMM") => {
                format!("{name}={} {}", &value[..16], &value[16..])
            }
            _ => cell.to_owned(),
        });
        Some(cells.collect::<Vec<_>>().join(" "))
    };
    let expected = format!("CPU#0\n{}", registers("pc-5.2-paused"));
    check_text(&unpack("pc-5.2-paused"), &expected, split);
}

#[test]
fn notes_are_those_of_qemus_own_dump() {
    for guest in GUESTS {
        let place = Workplace::with(&stream(guest));
        place.ramlift(&["extract", "stream", "--format", "elf", "-o", "core"]).expect_code(0);
        let expected = fs::read(data(&format!("cpu/{guest}.notes"))).unwrap();
        let core = place.read("core");
        assert!(notes(&core) == expected, "{guest}");
    }
}

#[test]
fn a_core_file_is_of_the_kind_that_qemus_is() {
    // Machine and byte order in the ELF header.
    let kinds = [
        ("x86_64-7.2", 62, 1),
        ("i386-7.2", 3, 1),
        ("arm-7.2", 40, 1),
        ("ppc64-10.0", 21, 2),
        ("s390x-10.0", 22, 2),
    ];
    for (guest, machine, order) in kinds {
        let place = Workplace::with(&stream(guest));
        place.ramlift(&["extract", "stream", "--format", "elf", "-o", "core"]).expect_code(0);
        let core = place.read("core");
        let at = if order == 2 { 19 } else { 18 };
        assert_eq!((core[5], core[at]), (order, machine), "{guest}");
    }
}

#[test]
fn json_has_each_register_as_a_number_or_as_words() {
    let json = Workplace::with(&stream("x86_64-7.2")).ramlift(&["cpu", "stream", "--json"]).json();
    let vcpus = json["vcpus"].as_array().unwrap();
    assert_eq!(vcpus.len(), 2);
    let first = &vcpus[0];
    assert_eq!((first["index"].as_u64(), first["architecture"].as_str()), (Some(0), Some("x86_64")));
    assert_eq!(first["registers"]["cr3"].as_u64(), Some(0));
    assert_eq!(first["registers"]["cr4"].as_u64(), Some(0x20));
    assert_eq!(first["registers"]["xmm3"].as_array().unwrap().len(), 4);
    assert_ne!(first["registers"]["rax"], vcpus[1]["registers"]["rax"]);
}

/// A stream in whose description the first of these texts is another.
fn misdescribed(guest: &str, text: &str, other: &str) -> Vec<u8> {
    let mut bytes = stream(guest);
    let at = bytes.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    bytes
}

#[test]
fn a_vcpu_that_cannot_be_read_is_warned_of_and_the_others_are_there() {
    let bytes = misdescribed("x86_64-7.2", "\"env.ldt\"", "\"env.xxx\"");
    let vcpus = cpu::vcpus(&Stream::parse(&bytes).unwrap());
    let (vcpus, failures) = (vcpus.vcpus, vcpus.failures);
    assert_eq!(vcpus.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [1]);
    assert!(failures[0].to_string().contains("vCPU 0") && failures[0].to_string().contains("env.ldt"));
    let place = Workplace::with(&bytes);
    let said = place.ramlift(&["extract", "stream", "--format", "elf", "-o", "core"]).expect_code(0);
    assert!(said.stderr.contains("vCPU 0"), "{}", said.stderr);
    // Two notes of the other one.
    assert_eq!(notes(&place.read("core")).len(), (20 + 336) + (20 + 440));
    assert!(place.ramlift(&["cpu", "stream"]).expect_code(3).text().starts_with("\nCPU#1\n"));
}

#[test]
fn what_has_no_known_registers_is_said_to() {
    let said = Workplace::with(&unpack("avr-7.2")).ramlift(&["cpu", "stream"]).expect_code(1);
    assert!(said.stderr.contains("not known"), "{}", said.stderr);
}

#[test]
fn vcpus_of_a_stream_without_a_description_are_said_to_be_unread() {
    let place = Workplace::with(&unpack("pc-5.2-machine-2.2-no-vmdesc"));
    let said = place.ramlift(&["cpu", "stream"]);
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains("description"), "{}", said.stderr);
    let said = place.ramlift(&["extract", "stream", "--format", "elf", "-o", "core", "--map", "pc.ram@0"]);
    assert!(said.stderr.contains("registers") && said.stderr.contains("description"), "{}", said.stderr);
}

/// A vCPU of IBM Z in a stream: what must be of it, in bytes, and a subsection of
/// so many.
fn ibm_z(synth: Synth, index: u32, guarded: usize) -> Synth {
    let field = |name: &str, count: usize| {
        format!(r#"{{"name": "{name}", "array_len": {count}, "type": "uint8", "size": 1}}"#)
    };
    let names =
        [("env.psw.mask", 1), ("env.psw.addr", 1), ("env.regs", 16), ("env.cregs", 16), ("env.aregs", 16)];
    let fields = names.map(|(name, count)| field(name, count)).join(", ");
    let mut keys = format!(r#""vmsd_name": "cpu", "version": 1, "fields": [{fields}]"#);
    let mut body = vec![1; 50];
    if guarded > 0 {
        let gscb = field("env.gscb", guarded);
        keys.push_str(&format!(
            r#", "subsections": [{{"vmsd_name": "cpu/gscb", "version": 1, "fields": [{gscb}]}}]"#
        ));
        body.extend(subsection("cpu/gscb", 1, &vec![7; guarded]));
    }
    synth.device_as(10 + index, "cpu", index, &body, &keys)
}

#[test]
fn a_row_has_no_more_registers_than_the_processor() {
    // Each element had a name: of a byte more than a hundred.
    let bytes = ibm_z(one_page(), 0, 100_000).finish();
    let vcpus = cpu::vcpus(&Stream::parse(&bytes).unwrap()).vcpus;
    assert_eq!(vcpus[0].register("gs3"), Some(7));
    assert_eq!(vcpus[0].registers().filter(|(name, _)| name.starts_with("gs")).count(), 4);
}

fn one_page() -> Synth {
    Synth::machine().ram(&[Block::new("s390.ram", 0x1000)], Records::new().fill("s390.ram", 0, 0x55))
}

#[test]
fn many_vcpus_take_no_time() {
    // For each all devices were gone through.
    const COUNT: u32 = 30_000;
    let halted = r#""vmsd_name": "cpu_common", "version": 1, "fields": [{"name": "halted", "type": "uint8", "size": 1}]"#;
    let synth = (0..COUNT).fold(one_page(), |synth, index| ibm_z(synth, index, 0));
    let synth = (0..COUNT).fold(synth, |synth, index| {
        synth.device_as(COUNT + 10 + index, "cpu_common", index, &[u8::from(index == 5)], halted)
    });
    let bytes = synth.finish();
    let stream = Stream::parse(&bytes).unwrap();
    let vcpus = in_time(|| cpu::vcpus(&stream)).vcpus;
    assert_eq!(vcpus.len(), COUNT as usize);
    assert!(vcpus.iter().all(|vcpu| vcpu.halted == Some(vcpu.index == 5)));
}
