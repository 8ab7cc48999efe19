//! Registers: of vCPUs of each architecture, described as QEMU does it, with a
//! change or two.

mod made;

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::cpu::{self, Vcpu};
use ramlift::physical::Note;
use ramlift::{Architecture, Idstr, Stream};

use super::fields::{Field, Fields};
use super::look::{check_error, check_message, look_through};
use super::synth::{Block, Records, Synth};
pub use made::{Kind, Made};

/// The vCPUs of a stream.
struct Plan {
    machine: &'static str,
    vcpus: Vec<Planned>,
    /// Which of them is changed.
    changed: Option<usize>,
}

struct Planned {
    index: u32,
    made: Made,
    halted: Option<bool>,
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind = *u.choose(&Kind::ALL)?;
        let machine = *u.choose(&["synth-1.0", "powernv9", "pseries-10.0", "pc-q35-10.0"])?;
        let mut vcpus = Vec::new();
        for nth in 0..u.int_in_range(1..=3)? {
            let index = if u.ratio(7, 8)? { nth } else { u.arbitrary()? };
            let made = Made::of(u, kind, machine.starts_with("powernv"))?;
            let halted = if u.ratio(3, 4)? { Some(u.arbitrary()?) } else { None };
            vcpus.push(Planned { index, made, halted });
        }
        let mut changed = None;
        if u.ratio(1, 2)? {
            let nth = u.choose_index(vcpus.len())?;
            for _ in 0..u.int_in_range(1..=3)? {
                vcpus[nth].made.fields.change(u)?;
            }
            changed = Some(nth);
        }
        Ok(Self { machine, vcpus, changed })
    }
}

impl Plan {
    fn stream(&self) -> Vec<u8> {
        let blocks = [Block::new("main.ram", 0x1000)];
        let mut synth = Synth::new()
            .configuration(self.machine)
            .ram(&blocks, Records::new().fill("main.ram", 0, 0x55))
            .undescribed(3, "apic-like", 0, &[]);
        // The description names it: what is not there ends where the next begins.
        synth = Fields::of(vec![Field::word("id", 4, 7)]).put(synth, 4, "apic", 0);
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            if let Some(halted) = vcpu.halted {
                let common = Fields::of(vec![
                    Field::word("halted", 4, halted.into()),
                    Field::word("interrupt_request", 4, 0x7e7e),
                ]);
                synth = common.put(synth, 20 + id, "cpu_common", vcpu.index);
            }
            synth = vcpu.made.fields.put(synth, 40 + id, "cpu", vcpu.index);
        }
        synth.finish()
    }

    /// Checks that what was put in is what comes out.
    fn check(&self, stream: &Stream<'_>) {
        let found = cpu::vcpus(stream);
        // The first one tells the architecture.
        if self.changed == Some(0) {
            return;
        }
        let whole = self.vcpus.iter().enumerate().filter(|(nth, _)| self.changed != Some(*nth));
        for (nth, planned) in whole {
            let indexes = self.vcpus.iter().filter(|other| other.index == planned.index);
            if indexes.count() > 1 {
                continue;
            }
            let vcpu = found.vcpus.iter().find(|vcpu| vcpu.index == planned.index);
            let vcpu = vcpu.unwrap_or_else(|| panic!("vCPU {nth} is not there: {:?}", found.failures));
            assert_eq!(vcpu.architecture, planned.made.architecture);
            assert_eq!(vcpu.halted, planned.halted);
            for (name, words) in &planned.made.expected {
                let met = vcpu.registers().find(|(met, _)| met == name).map(|(_, words)| words);
                assert_eq!(met, Some(words.as_slice()), "{name} of a {:?}", vcpu.architecture);
            }
            let text = vcpu.to_string();
            for part in &planned.made.shown {
                assert!(text.contains(part.as_str()), "no {part:?} in {text}");
            }
        }
    }
}

pub fn run(bytes: &[u8]) {
    let Ok(plan) = Plan::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let bytes = plan.stream();
    match Stream::parse(&bytes) {
        Ok(stream) => {
            look_through(&stream, &bytes);
            look_at_vcpus(&stream);
            plan.check(&stream);
        }
        Err(error) => {
            assert!(plan.changed.is_some(), "{error}");
            check_error(&error, &bytes);
        }
    }
}

/// Looks at all vCPUs of a stream.
pub fn look_at_vcpus(stream: &Stream<'_>) {
    let found = cpu::vcpus(stream);
    found.failures.iter().for_each(check_message);
    assert!(found.vcpus.is_sorted_by_key(|vcpu| vcpu.index), "by index");
    for vcpu in &found.vcpus {
        check_vcpu(vcpu);
    }
    let notes = cpu::notes(&found.vcpus);
    match cpu::core_kind(&found.vcpus) {
        None => assert!(notes.is_empty() && found.vcpus.is_empty()),
        Some(kind) => check_notes(&found.vcpus, &notes, kind.architecture, kind.is_big_endian),
    }
}

fn check_vcpu(vcpu: &Vcpu) {
    // What no register is has no name.
    assert!(vcpu.registers().len() < 300, "{} registers", vcpu.registers().len());
    for (name, words) in vcpu.registers() {
        assert!(!words.is_empty() && !name.is_empty() && name.chars().all(Idstr::is_plain), "{name:?}");
        assert_eq!(vcpu.register(name), if let [word] = words { Some(*word) } else { None });
    }
    let text = vcpu.to_string();
    assert!(text.ends_with('\n') && text.len() < 32 << 10, "text of {} bytes", text.len());
    assert!(text.chars().all(|char| char == '\n' || Idstr::is_plain(char)), "{text:?}");
}

/// Owner, kind and length of an architecture's notes.
fn forms(architecture: Architecture) -> &'static [(&'static str, u32, usize)] {
    match architecture {
        Architecture::X86_64 => &[("CORE", 1, 336), ("QEMU", 0, 440)],
        Architecture::I386 => &[("CORE", 1, 144), ("QEMU", 0, 440)],
        Architecture::Aarch64 => &[("CORE", 1, 392), ("CORE", 2, 528)],
        Architecture::Arm => &[("CORE", 1, 148), ("LINUX", 0x400, 260)],
        Architecture::Ppc64 => &[
            ("CORE", 1, 504),
            ("CORE", 2, 264),
            ("CORE", 0x100, 544),
            ("CORE", 0x102, 256),
            ("CORE", 0x101, 140),
        ],
        Architecture::S390x => &[
            ("CORE", 1, 336),
            ("CORE", 2, 136),
            ("LINUX", 0x305, 4),
            ("LINUX", 0x304, 128),
            ("LINUX", 0x301, 8),
            ("LINUX", 0x302, 8),
            ("LINUX", 0x303, 4),
            ("LINUX", 0x309, 128),
            ("LINUX", 0x30a, 256),
            ("LINUX", 0x30b, 32),
        ],
        Architecture::Riscv64 => &[("CORE", 1, 376)],
        Architecture::Loongarch64 => &[("CORE", 1, 480), ("CORE", 2, 268)],
        other => panic!("{other:?}"),
    }
}

/// Checks that each note is as long as QEMU's, and which vCPU's it is.
fn check_notes(vcpus: &[Vcpu], notes: &[Note], architecture: Architecture, is_big_endian: bool) {
    let forms = forms(architecture);
    for note in notes {
        let is_known = forms.contains(&(note.name, note.kind, note.desc.len()));
        assert!(is_known, "{architecture:?}: {} {} of {} bytes", note.name, note.kind, note.desc.len());
    }
    let status = notes.iter().filter(|note| (note.name, note.kind) == ("CORE", 1));
    let at = if matches!(architecture, Architecture::I386 | Architecture::Arm) { 24 } else { 32 };
    let ids: Vec<u32> = status
        .map(|note| {
            let word = *note.desc[at..].first_chunk().unwrap();
            if is_big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        })
        .collect();
    let expected: Vec<u32> = vcpus.iter().map(|vcpu| vcpu.index.wrapping_add(1)).collect();
    assert_eq!(ids, expected, "process ids");
    let without = |form: &&(&str, u32, usize)| form.1 != 0x400;
    let least = forms.iter().filter(without).count() * vcpus.len();
    assert!((least..=forms.len() * vcpus.len()).contains(&notes.len()), "{} notes", notes.len());
}
