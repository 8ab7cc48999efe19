//! A kernel of Linux in a guest's memory: one that is found as it was put there,
//! and one that lies.

use arbitrary::{Result, Unstructured};
use ramlift::PhysicalAddress;
use ramlift::guest::{Evidence, Linux};
use ramlift::physical::PhysicalMemory;

use super::super::fields::{Field, Fields};
use super::super::kernel::{Memory, PAGE, note};
use super::super::synth::{Block, Synth};
use super::super::vcpu::Vcpu;
use super::tables::{Tables, walk_as};
use super::{DEPTHS, Found, look_at_kernels, with_memory};

const MIB: u64 = 1 << 20;
const RAM_LEN: u64 = 32 * MIB;
const RELEASE: &str = "6.1.0-fuzz";
const VERSION: &str = "#7 SMP 2026";
const BANNER: &str = "Linux version 6.1.0-fuzz (build@host) (cc 1.0) #7 SMP 2026";

/// Where things are in the image.
const UTS: u64 = 0x10_0000;
const BANNER_AT: u64 = 0x10_1100;
const INFO: u64 = 0x10_3100;
const TABLES: u64 = 0x11_0000;

/// Values that keys of VMCOREINFO do not have.
const ABSURD: [&str; 12] = [
    "",
    "0",
    "1",
    "-1",
    "ffffffffffffffff",
    "0xffffffffffffffff",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999999999999999999999",
    "0x8000000000000000",
    "4096",
    "a=b",
];

/// A kernel.
#[derive(Clone)]
struct Plan {
    is_arm: bool,
    levels: u32,
    /// Where its image is in memory, and where it sees it.
    image: u64,
    stext: u64,
    /// By how much it sees all memory above where it is; how large those pages are.
    linear: u64,
    linear_level: u32,
    image_level: u32,
    place: Place,
    has_banner: bool,
    kref: u64,
}

/// Where VMCOREINFO is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// At the begin of a page.
    Page,
    /// The same, as a note.
    Note,
    /// As a note whose place QEMU's device knows.
    Device,
    /// Anywhere.
    Amid,
    /// In the image, to which a vCPU leads.
    Image,
}

impl Plan {
    fn of(u: &mut Unstructured<'_>) -> Result<Self> {
        let is_arm = u.ratio(1, 3)?;
        let levels = if is_arm { 4 } else { *u.choose(&[4, 4, 5])? };
        let image = 2 * MIB * u.int_in_range(1..=14)?;
        let (stext, linear) = match (is_arm, levels) {
            (true, _) => {
                (0xffff_8000_0000_0000 + (u.int_in_range(1..=0x3ff_ff00)? << 21), 0xffff_0000_0000_0000)
            }
            (false, 4) => (0xffff_ffff_8000_0000, 0xffff_8880_0000_0000 + (u.int_in_range(0..=500)? << 30)),
            _ => (0xffff_ffff_8000_0000, 0xff11_0000_0000_0000 + (u.int_in_range(0..=5000)? << 30)),
        };
        let stext = if is_arm { stext } else { stext + (u.int_in_range(0..=500)? << 21) };
        let places = [Place::Page, Place::Note, Place::Device, Place::Amid, Place::Image];
        let place = *u.choose(&places)?;
        Ok(Self {
            is_arm,
            levels,
            image,
            stext,
            linear,
            linear_level: u.int_in_range(1..=2)?,
            image_level: u.int_in_range(0..=1)?,
            place: if is_arm && place == Place::Image { Place::Amid } else { place },
            has_banner: u.arbitrary()?,
            kref: *u.choose(&[0, 4, 8])?,
        })
    }

    fn lines(&self) -> Vec<(String, String)> {
        let of = |at: u64| format!("{:x}", self.stext + at);
        let offset = self.stext.wrapping_sub(self.image);
        let mut lines = vec![
            ("OSRELEASE", RELEASE.to_owned()),
            ("PAGESIZE", "4096".to_owned()),
            ("SYMBOL(init_uts_ns)", of(UTS)),
            ("SYMBOL(swapper_pg_dir)", of(TABLES)),
            ("SYMBOL(_stext)", of(0)),
            ("KERNELOFFSET", "0".to_owned()),
        ];
        match self.is_arm {
            true => lines.extend([
                ("NUMBER(VA_BITS)", "48".to_owned()),
                ("NUMBER(kimage_voffset)", format!("0x{offset:x}")),
            ]),
            false => lines.extend([
                (
                    "NUMBER(phys_base)",
                    0xffff_ffff_8000_0000_u64.wrapping_sub(offset).cast_signed().to_string(),
                ),
                ("NUMBER(pgtable_l5_enabled)", u8::from(self.levels == 5).to_string()),
            ]),
        }
        lines.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn tables(&self) -> Tables {
        let mut tables = Tables::new(self.image + TABLES, self.levels, self.is_arm);
        match self.image_level {
            0 => (0..512).for_each(|nth| tables.map(self.stext + nth * PAGE, self.image + nth * PAGE, 0)),
            _ => tables.map(self.stext, self.image, 1),
        }
        match self.linear_level {
            1 => (0..16).for_each(|nth| tables.map(self.linear + (nth << 21), nth << 21, 1)),
            _ => tables.map(self.linear, 0, 2),
        }
        tables
    }

    /// Where the text of VMCOREINFO goes, and what stands there.
    fn info(&self, text: &str) -> (u64, u64, Vec<u8>) {
        // Behind the image or before it, but not where ROMs are.
        let page = if self.image == 2 * MIB { 5 * MIB } else { 2 * MIB };
        let plain = [text.as_bytes(), &[0]].concat();
        match self.place {
            Place::Page => (page, page, plain),
            Place::Note | Place::Device => (page, page + 24, note(&format!("{text}\0"))),
            Place::Amid => (page + 0x123, page + 0x123, plain),
            Place::Image => (self.image + INFO, self.image + INFO, plain),
        }
    }

    fn image(&self, memory: Memory, release: &str) -> Memory {
        let names = ["Linux", "fuzz-host", release, VERSION, if self.is_arm { "aarch64" } else { "x86_64" }];
        let uts = self.image + UTS + self.kref;
        let memory =
            (0..).zip(names).fold(memory, |memory, (nth, name)| memory.put(uts + 65 * nth, name.as_bytes()));
        match self.has_banner {
            true => memory.put(self.image + BANNER_AT, format!("{BANNER}\n\0").as_bytes()),
            false => memory,
        }
    }

    fn vcpu(&self, root: u64) -> Vcpu {
        let cr4 = u64::from(self.levels == 5) << 12;
        Vcpu { lstar: self.stext + 0x1040, cr3: root, cr4, ..Vcpu::default() }
    }
}

pub fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let plan = Plan::of(u)?;
    let text: String = plan.lines().iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    check_right(&plan, &text);
    if u.is_empty() {
        return Ok(());
    }
    check_hostile(&plan, u)
}

fn stream(plan: &Plan, memory: &Memory, vcpus: &[Vcpu], note_at: Option<u64>) -> Vec<u8> {
    let blocks = [Block::new("pc.ram", RAM_LEN)];
    let mut synth = Synth::new().configuration("pc-i440fx-10.0").ram(&blocks, memory.records());
    if let Some(at) = note_at.filter(|_| plan.place == Place::Device) {
        let fields = vec![
            Field::word("vmcoreinfo.host_format", 2, 1),
            Field::word("vmcoreinfo.guest_format", 2, 1),
            Field::word("vmcoreinfo.size", 4, 1024),
            Field::word("vmcoreinfo.paddr", 8, at),
        ];
        synth = Fields::of(fields).put(synth, 30, "vmcoreinfo", 0);
    }
    (0..).zip(vcpus).fold(synth, |synth, (nth, vcpu)| vcpu.put(synth, nth)).finish()
}

/// Checks that what was put there is found, as it was put.
fn check_right(plan: &Plan, text: &str) {
    let tables = plan.tables();
    let (at, text_at, info) = plan.info(text);
    let memory = tables.put(plan.image(Memory::default(), RELEASE)).put(at, &info);
    let vcpus: Vec<Vcpu> = if plan.is_arm { Vec::new() } else { vec![plan.vcpu(tables.root)] };
    let bytes = stream(plan, &memory, &vcpus, Some(at));
    with_memory(&bytes, true, |stream, memory| {
        let found = look_at_kernels(stream, memory, &DEPTHS);
        // What does not begin a page is found where all is looked at, or the image.
        let skipped = if plan.place == Place::Amid { 2 } else { 0 };
        found.linux.iter().skip(skipped).for_each(|linux| check_linux(plan, linux.as_ref(), text_at));
        check_ranges(plan, &found, memory, &tables);
        let len: u64 = if plan.linear_level == 1 { RAM_LEN } else { 1 << 30 };
        let expected = [(plan.linear, 0, len), (plan.stext, plan.image, 2 * MIB)];
        let met: Vec<_> = found
            .ranges
            .iter()
            .map(|range| (range.start, range.memory.start.0, range.memory.end.0 - range.memory.start.0))
            .collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(met, expected);
        assert_eq!(found.windows, None);
    });
}

fn check_linux(plan: &Plan, linux: Option<&Linux>, text_at: u64) {
    let linux = linux.unwrap_or_else(|| panic!("it is not found: {:?}", plan.place));
    assert_eq!((linux.evidence, linux.at), (Evidence::Kernel, PhysicalAddress(text_at)), "{:?}", plan.place);
    assert_eq!(linux.image_offset(), Some(plan.stext.wrapping_sub(plan.image)));
    assert_eq!(linux.image_start(), Some(PhysicalAddress(plan.image)));
    assert_eq!(linux.banner.as_deref(), plan.has_banner.then_some(BANNER));
    let uts = linux.uts.as_ref().expect("it is confirmed");
    assert_eq!([&uts.nodename, &uts.release, &uts.version], ["fuzz-host", RELEASE, VERSION]);
}

/// Checks that tables have memory where ranges say so.
fn check_ranges(plan: &Plan, found: &Found, memory: PhysicalMemory<'_, '_>, tables: &Tables) {
    for range in &found.ranges {
        let len = range.memory.end.0 - range.memory.start.0;
        for skipped in [0, len - 1] {
            let at = range.start.wrapping_add(skipped);
            let to = walk_as(memory, tables.root, at, plan.levels, plan.is_arm);
            assert_eq!(to, Some(range.memory.start.0 + skipped), "{at:#x} of {range:x?}");
        }
    }
}

/// Checks a kernel that lies: of itself, or where it has memory.
fn check_hostile(plan: &Plan, u: &mut Unstructured<'_>) -> Result<()> {
    let mut lines = plan.lines();
    let (mut release, mut is_right) = (RELEASE, true);
    let mut tables = plan.tables();
    let mut vcpus = vec![plan.vcpu(tables.root)];
    for _ in 0..u.int_in_range(1..=4)? {
        match u.int_in_range(0..=6)? {
            0..=1 => {
                let nth = u.choose_index(lines.len())?;
                lines[nth].1 = match u.ratio(1, 2)? {
                    true => (*u.choose(&ABSURD)?).to_owned(),
                    false => format!("{:x}", u.arbitrary::<u64>()?),
                };
                is_right = false;
            }
            2 => {
                let nth = u.choose_index(lines.len())?;
                let line = (lines[nth].0.clone(), (*u.choose(&ABSURD)?).to_owned());
                lines.insert(u.choose_index(lines.len())?, line);
                is_right = false;
            }
            3 => {
                drop(lines.remove(u.choose_index(lines.len())?));
                is_right = false;
            }
            4 => release = "6.1.0-other",
            5 => tables.change(u)?,
            _ => vcpus = others(u, plan, &tables)?,
        }
        if lines.is_empty() {
            return Ok(());
        }
    }
    let mut text: String = lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    if u.ratio(1, 8)? {
        text.push_str(&format!("LENGTH(log)={}\n", "9".repeat(u.int_in_range(0..=5000)?)));
    }
    let (at, _, info) = plan.info(&text);
    let mut memory = tables.put(plan.image(Memory::default(), release)).put(at, &info);
    // Others that look like it.
    for _ in 0..u.int_in_range(0..=3)? {
        let at = 16 * PAGE + u.int_in_range(0..=0x40)? * PAGE + *u.choose(&[0, 0, 24, 0xfe0])?;
        let head =
            u.choose(&["OSRELEASE=6.1.0-fuzz\nPAGESIZE=65536\n", "OSRELEASE=", "OSRELEASE=6.1.0-fuzz\n"])?;
        memory = memory.put(at, head.as_bytes());
    }
    let paddr = if u.ratio(3, 4)? { at } else { u.arbitrary()? };
    let bytes = stream(plan, &memory, &vcpus, Some(paddr));
    with_memory(&bytes, true, |stream, memory| {
        let found = look_at_kernels(stream, memory, &DEPTHS);
        let is_confirmed = found.linux.iter().flatten().any(|linux| linux.evidence == Evidence::Kernel);
        assert!(!is_confirmed || release == RELEASE, "one that is not there");
        if is_right && is_confirmed {
            check_ranges(plan, &found, memory, &tables);
        }
    });
    Ok(())
}

/// vCPUs that lead anywhere.
fn others(u: &mut Unstructured<'_>, plan: &Plan, tables: &Tables) -> Result<Vec<Vcpu>> {
    let mut vcpus = Vec::new();
    for nth in 0..u.int_in_range(0..=4)? {
        let right = plan.vcpu(tables.root);
        let mut place = |right: u64| -> Result<u64> {
            Ok(match u.int_in_range(0..=3)? {
                0 => right.wrapping_add(u.int_in_range(0..=8)? * PAGE),
                1 => u.arbitrary()?,
                _ => right,
            })
        };
        vcpus.push(Vcpu {
            lstar: place(right.lstar)?.wrapping_add(nth),
            cr3: place(right.cr3)?,
            cr4: place(right.cr4)?,
            gs_base: place(plan.linear)?,
            kernel_gs_base: place(0xffff_f800_0000_0000)?,
        });
    }
    Ok(vcpus)
}
