//! The memory of PCs: i440fx, q35, microvm and isapc.
//!
//! ```text
//! 0         0xa0000  0xc0000   0x100000             low end     4 GiB
//! ├── RAM ────┤ VGA ───┤ shadow ──┤────── RAM ─────────┤  PCI hole  ├── the rest of RAM ──
//! ```
//!
//! RAM is one row of bytes, cut in two: what does not fit below the PCI hole
//! stands at 4 GiB. Where the cut is, is a rule of the machine type, which
//! `max-ram-below-4g` changes; but the firmware is told, in the CMOS of the
//! clock, and that is in the stream.
//!
//! Source followed: QEMU `hw/i386/pc_piix.c`, `pc_q35.c`, `microvm.c`,
//! `x86-cpu.c` (`pc_cmos_init`), `hw/pci-host/pam.c`.

use std::ops::Range;

use super::Assumption;
use super::draft::{Draft, without};
use crate::stream::Stream;
use crate::vmstate::{State, Value};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where RAM goes on that is not below the PCI hole.
const ABOVE_4G: u64 = 4 * GIB;
/// The same on AMD's processors, if it would reach HyperTransport's range.
const ABOVE_1T: u64 = 1024 * GIB;
/// Where that range begins.
const HYPERTRANSPORT: u64 = 1012 * GIB;

const VGA: Range<u64> = 0xa_0000..0xc_0000;
const SHADOW: Range<u64> = 0xc_0000..0x10_0000;
/// Where the end of the firmware is shown, as much of it as there is room.
const LEGACY_BIOS: u64 = 0xe_0000;

/// A kind of PC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pc {
    I440fx,
    Q35,
    Microvm,
    Isapc,
}

impl Pc {
    /// By the machine type, or by its devices where the stream has no type.
    pub(super) fn of(machine: Option<&str>, stream: &Stream<'_>) -> Option<Self> {
        let has = |suffix: &[u8]| {
            stream.sections().iter().any(|section| section.handler.idstr.as_bytes().ends_with(suffix))
        };
        match machine {
            Some(machine) if machine.starts_with("pc-q35") => Some(Self::Q35),
            Some(machine) if machine.starts_with("pc-") || machine.starts_with("xenfv") => Some(Self::I440fx),
            Some(machine) if machine.starts_with("microvm") => Some(Self::Microvm),
            Some(machine) if machine.starts_with("isapc") => Some(Self::Isapc),
            // Distributions name their own types: what the board has tells.
            _ if has(b"/I440FX") => Some(Self::I440fx),
            _ if has(b"/mch") => Some(Self::Q35),
            // Up to 2.2 a stream has no type, and without a description none of
            // the devices behind RAM is known: the board that nearly all had.
            None if stream.ram().is_some_and(|ram| ram.find(b"pc.ram").is_some()) => Some(Self::I440fx),
            _ => None,
        }
    }

    /// The name of its RAM block, if RAM is one and was not given another.
    pub(super) fn ram_id(self) -> &'static [u8] {
        match self {
            Self::Microvm => b"microvm.ram",
            _ => b"pc.ram",
        }
    }

    /// How much of `ram` bytes is below the PCI hole, by the rule of the type.
    fn below_4g(self, machine: Option<&str>, ram: u64) -> u64 {
        match self {
            Self::I440fx if ram < 0xe000_0000 => ram,
            // Up to 1.7 RAM went on up to 3.5 GiB.
            Self::I440fx if machine.is_some_and(is_up_to_1_7) => 0xe000_0000,
            Self::I440fx | Self::Microvm => ram.min(0xc000_0000),
            Self::Q35 if ram < 0xb000_0000 => ram,
            Self::Q35 => 0x8000_0000,
            Self::Isapc => ram,
        }
    }
}

fn is_up_to_1_7(machine: &str) -> bool {
    let version = machine.strip_prefix("pc-i440fx-").or_else(|| machine.strip_prefix("pc-")).unwrap_or("");
    version.strip_prefix("0.").is_some()
        || version
            .strip_prefix("1.")
            .and_then(|minor| minor.parse::<u32>().ok())
            .is_some_and(|minor| minor <= 7)
}

/// Whether a machine type goes round HyperTransport's range: since 7.1.
fn may_go_above_1t(machine: Option<&str>) -> bool {
    let version = machine.and_then(|machine| machine.rsplit('-').next()).unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) >= (7, 1))
}

/// Places RAM, which is `draft`'s row of main blocks.
pub(super) fn place(pc: Pc, machine: Option<&str>, stream: &Stream<'_>, draft: &mut Draft<'_>) {
    let ram = draft.main_len();
    if machine.is_none() && stream.devices().next().is_none() {
        let text = "the board is i440FX's: of no device is anything known. Q35 has less RAM below 4 GiB";
        draft.assume(Assumption { text: text.into(), option: Some("--below-4g") });
    }
    let (low, how) = low_part(pc, machine, stream, draft, ram);
    place_first_mib(pc, stream, draft, low.min(MIB));
    draft.place_main(MIB.min(low)..low, MIB.min(low), how);
    let mut end = ABOVE_4G;
    if ram > low {
        let high = above(pc, machine, draft, ram - low);
        draft.place_main(low..ram, high, "RAM above 4 GiB: what is not below the PCI hole");
        end = high.saturating_add(ram - low);
    }
    draft.set_device_memory(end.checked_next_multiple_of(GIB));
}

/// How long the part below 4 GiB is, and how that is known.
fn low_part(
    pc: Pc,
    machine: Option<&str>,
    stream: &Stream<'_>,
    draft: &mut Draft<'_>,
    ram: u64,
) -> (u64, &'static str) {
    if let Some(given) = draft.hints().below_4g {
        return (given.min(ram), "RAM below 4 GiB: as given by --below-4g");
    }
    let by_rule = pc.below_4g(machine, ram);
    match told_to_firmware(stream) {
        Some((below, above)) if below.checked_add(above) == Some(ram) => {
            return (below, "RAM below 4 GiB: as the CMOS tells the firmware");
        }
        Some((below, above)) if ram != 0 => draft.assume(Assumption {
            text: format!(
                "{by_rule:#x} bytes of RAM are below 4 GiB, the rule of the machine type: the CMOS says {below:#x}, and {above:#x} above, which is not the {ram:#x} that there are"
            )
            .into(),
            option: Some("--below-4g"),
        }),
        _ if ram > by_rule => draft.assume(Assumption {
            text: format!("{by_rule:#x} bytes of RAM are below 4 GiB: max-ram-below-4g was not given").into(),
            option: Some("--below-4g"),
        }),
        _ => {}
    }
    (by_rule, "RAM below 4 GiB: the rule of the machine type")
}

/// RAM below and above 4 GiB, as `pc_cmos_init` tells them.
///
/// ```text
/// 0x34 0x35         RAM from 16 MiB to 4 GiB, in units of 64 KiB
/// 0x5b 0x5c 0x5d    RAM above 4 GiB, in units of 64 KiB
/// ```
///
/// Less than 16 MiB is not told so.
pub(super) fn told_to_firmware(stream: &Stream<'_>) -> Option<(u64, u64)> {
    const UNIT: u64 = 64 << 10;
    let clock =
        stream.devices().find(|device| device.section.handler.idstr == "mc146818rtc")?.decode().ok()?;
    let Value::Bytes(cmos) = clock.field("cmos_data")?.value else { return None };
    let byte = |at: usize| cmos.get(at).copied().map(u64::from);
    let below = (byte(0x34)? | byte(0x35)? << 8) * UNIT;
    let above = (byte(0x5b)? | byte(0x5c)? << 8 | byte(0x5d)? << 16) * UNIT;
    // What the last unit lacks to 4 GiB is not told.
    (below > 0).then_some((below + 16 * MIB, above))
}

/// Where the part above 4 GiB begins.
fn above(pc: Pc, machine: Option<&str>, draft: &mut Draft<'_>, len: u64) -> u64 {
    let hole = match pc {
        Pc::Q35 => 32 * GIB,
        Pc::I440fx => 2 * GIB,
        Pc::Microvm | Pc::Isapc => return ABOVE_4G,
    };
    let end =
        ABOVE_4G.saturating_add(len).checked_next_multiple_of(GIB).unwrap_or(u64::MAX).saturating_add(hole);
    if end <= HYPERTRANSPORT || !may_go_above_1t(machine) {
        return ABOVE_4G;
    }
    let text = format!(
        "the processor is not AMD's: with one, RAM above 4 GiB would be at {ABOVE_1T:#x}, round HyperTransport's range"
    );
    draft.assume(Assumption { text: text.into(), option: Some("--map") });
    ABOVE_4G
}

/// The first MiB: RAM, but for the windows of VGA and of ROMs.
fn place_first_mib(pc: Pc, stream: &Stream<'_>, draft: &mut Draft<'_>, end: u64) {
    draft.place_main(0..VGA.start.min(end), 0, "RAM below 640 KiB");
    let vga = VGA.start.min(end)..VGA.end.min(end);
    match has_vga(stream) {
        true => draft.leave_main(vga, "under the window of VGA: seen in SMM alone, if at all"),
        false => draft.place_main(vga.clone(), vga.start, "RAM where VGA would be, of which there is none"),
    }
    let shadow = match pc {
        Pc::I440fx => pam(stream, b"/I440FX", 0x59),
        Pc::Q35 => pam(stream, b"/mch", 0x90),
        Pc::Microvm | Pc::Isapc => Some(vec![(SHADOW, false)]),
    };
    let Some(shadow) = shadow else {
        draft.leave_main(
            SHADOW.start.min(end)..end,
            "under the ROMs: whether it was shown there is not known",
        );
        return;
    };
    let roms = roms(draft);
    for (range, is_ram) in shadow {
        let range = range.start.min(end)..range.end.min(end);
        if is_ram {
            draft.place_main(range.clone(), range.start, "RAM in the place of ROMs, for reads at least");
            continue;
        }
        for rom in &roms {
            let rom = rom.start.max(range.start)..rom.end.min(range.end);
            draft.leave_main(rom, "under ROMs, which are shown for reads");
        }
        for free in without(range, roms.to_vec()) {
            draft.place_main(free.clone(), free.start, "RAM where no ROM is");
        }
    }
}

/// Where ROMs are below 1 MiB: the board's for those of devices from the begin
/// on, and the end of the firmware up to the end. Firmware in flash has a copy
/// of its own there.
fn roms(draft: &Draft<'_>) -> [Range<u64>; 2] {
    let devices = draft.block_len_of(b"pc.rom").min(SHADOW.end - SHADOW.start);
    let firmware = [&b"pc.bios"[..], b"isa-bios"].map(|idstr| draft.block_len_of(idstr));
    let firmware = firmware.into_iter().max().unwrap_or(0).min(SHADOW.end - LEGACY_BIOS);
    [SHADOW.start..SHADOW.start + devices, SHADOW.end - firmware..SHADOW.end]
}

/// Whether any device answers where VGA's memory is.
fn has_vga(stream: &Stream<'_>) -> bool {
    let is_vga =
        |name: &[u8]| ["vga", "qxl"].iter().any(|part| memchr::memmem::find(name, part.as_bytes()).is_some());
    stream.sections().iter().any(|section| is_vga(section.handler.idstr.as_bytes()))
}

/// Which parts of the shadowed range read as RAM, by the chipset's PAM
/// registers: seven from `first` of its PCI configuration on.
///
/// ```text
/// register 0   bits 4, 5: 0xf0000, 64 KiB
/// 1 to 6       bits 0, 1: 16 KiB from 0xc0000 on; bits 4, 5: the next 16
/// bit 0 of each pair: reads go to RAM
/// ```
fn pam(stream: &Stream<'_>, bridge: &[u8], first: usize) -> Option<Vec<(Range<u64>, bool)>> {
    const PART: u64 = 16 << 10;
    let ends = |name: &[u8]| name.ends_with(bridge);
    let device = stream.devices().find(|device| ends(device.section.handler.idstr.as_bytes()))?;
    let state = device.decode().ok()?;
    let config = configuration(&state)?;
    let registers = config.get(first..first + 7)?;
    let (top, rest) = registers.split_first()?;
    let bits = rest.iter().flat_map(|register| [register & 1, register >> 4 & 1]);
    let parts = (SHADOW.start..).step_by(usize::try_from(PART).ok()?).zip(bits);
    let mut ranges: Vec<(Range<u64>, bool)> = parts.map(|(at, bit)| (at..at + PART, bit != 0)).collect();
    ranges.push((0xf_0000..SHADOW.end, top >> 4 & 1 != 0));
    // What reads alike is one range.
    ranges.dedup_by(|next, last| {
        let is_alike = next.1 == last.1;
        last.0.end = if is_alike { next.0.end } else { last.0.end };
        is_alike
    });
    Some(ranges)
}

/// The PCI configuration space of a device.
fn configuration<'a>(state: &State<'a, '_>) -> Option<&'a [u8]> {
    let parent = state.field("parent_obj").or_else(|| state.field("dev"))?;
    let fields = &parent.value.as_struct()?.fields;
    fields.iter().find(|field| field.desc.name.starts_with("config")).and_then(|field| match field.value {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    })
}
