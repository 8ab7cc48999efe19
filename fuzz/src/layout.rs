//! Layouts of guest-physical memory: of machine types, RAM blocks and devices as
//! wild as they come, with hints, and the files that are made of them.

mod files;

use arbitrary::{Arbitrary, Result, Unstructured};
use ramlift::physical::{Layout, LayoutHints, MapHint, PhysicalMemory};
use ramlift::{BlockId, BlockOffset, PhysicalAddress, Ram, Stream};

use super::cpu::{Kind, Made};
use super::fields::{Field, Fields};
use super::look::{check_error, check_message, check_text};
use super::synth::{Block, RAM_ID, Records, Synth, block_list, noise};
use super::virtio;

const PAGE: u64 = 4096;

const MACHINES: [Option<&str>; 22] = [
    Some("pc-i440fx-10.0"),
    Some("pc-q35-10.0"),
    Some("pc-q35-7.0"),
    Some("pc-1.7"),
    Some("pc-i440fx-1.4"),
    Some("microvm"),
    Some("isapc"),
    Some("virt-10.0"),
    Some("pseries-10.0"),
    Some("powernv9"),
    Some("s390-ccw-virtio-10.0"),
    Some("sbsa-ref"),
    Some("raspi3b"),
    Some("clipper"),
    Some("hppa"),
    Some("xenfv"),
    Some("pc-i440fx-rhel7.6.0"),
    Some("pc-q35-"),
    Some("never heard of"),
    Some(""),
    Some("\x1b[31m"),
    None,
];

const NAMES: [&str; 32] = [
    "pc.ram",
    "pc.ram",
    "microvm.ram",
    "mach-virt.ram",
    "ppc_spapr.ram",
    "s390.ram",
    "riscv_virt_board.ram",
    "riscv.sifive.u.ram",
    "loongarch.ram",
    "mips_malta.ram",
    "pnv.ram",
    "sbsa-ref.ram",
    "ram",
    "mem0",
    "mem1",
    "n9",
    "n10",
    "n99999999999999999999",
    "ram-node0",
    "memdimm0",
    "memdimm1",
    "/objects/dimm1",
    "d0/vm0",
    "d1/a/b/vm1",
    "0000:00:02.0/vga.vram",
    "vga.vram",
    "pc.bios",
    "pc.rom",
    "isa-bios",
    "system.flash0",
    "/rom@etc/acpi/tables",
    "\x1b[2J",
];

/// Lengths of blocks, those where rules of boards change among them.
const LENS: [u64; 16] = [
    0x9_f000,
    0xa_0000,
    0x10_0000,
    0x20_0000,
    0x100_0000,
    0x4000_0000,
    0xb000_0000,
    0xc000_0000,
    0xe000_0000,
    0x1_0000_0000,
    0x1_4000_0000,
    1 << 40,
    (1 << 40) + 0x1000,
    1 << 52,
    1 << 60,
    (1 << 63) - 0x1000,
];

/// A stream to be written, and what is known beside it.
struct Plan {
    machine: Option<&'static str>,
    blocks: Vec<Block>,
    /// Which block, where, and by what it is filled.
    pages: Vec<(usize, u64, u16)>,
    devices: Vec<(String, Fields)>,
    hints: LayoutHints,
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let machine = *u.choose(&MACHINES)?;
        let has_addresses = u.ratio(1, 8)?;
        let mut blocks: Vec<Block> = Vec::new();
        for _ in 0..u.int_in_range(1..=6)? {
            let name = u.choose(&NAMES)?;
            if blocks.iter().any(|block| block.idstr == name.as_bytes()) {
                continue;
            }
            let len = match u.int_in_range(0..=3)? {
                0 => *u.choose(&LENS)?,
                1 => u.int_in_range(0..=600)? * PAGE,
                2 => u.int_in_range(1..=16)? << 20,
                _ => u.int_in_range(1..=40)? * PAGE,
            };
            let len = if u.ratio(1, 16)? { len + 0x400 } else { len };
            let block = Block::new(name, len);
            let address = if u.ratio(1, 2)? { u.int_in_range(0..=64)? << 20 } else { u.arbitrary()? };
            blocks.push(if has_addresses { block.mr_addr(address) } else { block });
        }
        let pages = pages(u, &blocks)?;
        let devices = devices(u, &blocks)?;
        let hints = hints(u, &blocks)?;
        Ok(Self { machine, blocks, pages, devices, hints })
    }
}

/// Pages of data at places that matter.
fn pages(u: &mut Unstructured<'_>, blocks: &[Block]) -> Result<Vec<(usize, u64, u16)>> {
    let mut pages = Vec::new();
    for _ in 0..u.int_in_range(0..=24)? {
        let nth = u.choose_index(blocks.len())?;
        let Some(last) = blocks[nth].used_length.div_ceil(PAGE).checked_sub(1) else { continue };
        let page = match u.int_in_range(0..=4)? {
            0 => 0,
            1 => last,
            2 => u.choose(&[0x9f, 0xa0, 0xbf, 0xc0, 0xf0, 0x100, 0x1ff, 0x200, 0x8_0000])? % (last + 1),
            3 => last / 2,
            _ => u.int_in_range(0..=last)?,
        };
        pages.push((nth, page * PAGE, u.arbitrary()?));
    }
    Ok(pages)
}

/// Devices that a layout reads.
fn devices(u: &mut Unstructured<'_>, blocks: &[Block]) -> Result<Vec<(String, Fields)>> {
    let mut devices = Vec::new();
    for (name, registers) in [("0000:00:00.0/I440FX", 0x59), ("0000:00:00.0/mch", 0x90)] {
        if u.ratio(1, 3)? {
            let mut config = noise(3, 256);
            config[registers..registers + 7].copy_from_slice(&u.arbitrary::<[u8; 7]>()?);
            let config = Field::bytes("config", "buffer", config);
            let parent = u.choose(&["parent_obj", "dev"])?;
            let fields = vec![Field::structs(parent, vec![vec![Field::word("version_id", 4, 2), config]])];
            devices.push((name.to_owned(), Fields::of(fields)));
        }
    }
    if u.ratio(1, 3)? {
        let mut cmos = vec![0; 128];
        let main: u64 =
            blocks.iter().take(2).fold(0, |sum: u64, block| sum.saturating_add(block.used_length));
        let below = if u.ratio(1, 2)? { main } else { u.arbitrary::<u32>()?.into() };
        let units = (below.saturating_sub(16 << 20) >> 16).to_le_bytes();
        cmos[0x34..0x36].copy_from_slice(&units[..2]);
        if u.ratio(1, 2)? {
            cmos[0x5b..0x5e].copy_from_slice(&u.arbitrary::<[u8; 3]>()?);
        }
        let fields = vec![Field::bytes("cmos_data", "buffer", cmos)];
        devices.push(("mc146818rtc".to_owned(), Fields::of(fields)));
    }
    for (name, block) in [("d0/virtio-mem", "d0/vm0"), ("d1/virtio-mem-device-early", "d1/a/b/vm1")] {
        if u.ratio(1, 3)? {
            let block = blocks.iter().find(|known| known.idstr == block.as_bytes());
            let len = block.map_or(Ok(0x20_0000), |block| Ok(block.used_length))?;
            devices.push((name.to_owned(), virtio_mem(u, len)?));
        }
    }
    if u.ratio(1, 4)? {
        devices.push(("0000:00:02.0/vga".to_owned(), Fields::of(vec![Field::word("x", 4, 1)])));
    }
    if u.ratio(1, 3)? {
        let kind = *u.choose(&Kind::ALL)?;
        devices.push(("cpu".to_owned(), Made::of(u, kind, false)?.fields));
    }
    if u.ratio(1, 8)? && !devices.is_empty() {
        let nth = u.choose_index(devices.len())?;
        devices[nth].1.change(u)?;
    }
    Ok(devices)
}

/// Memory that is plugged in in parts.
fn virtio_mem(u: &mut Unstructured<'_>, len: u64) -> Result<Fields> {
    let address = if u.ratio(3, 4)? { u.int_in_range(0..=600)? << 24 } else { u.arbitrary()? };
    let len = if u.ratio(7, 8)? { len } else { u.arbitrary()? };
    let block_len = if u.ratio(7, 8)? { 1 << u.int_in_range(12..=40)? } else { u.arbitrary()? };
    let bitmap = noise(u.arbitrary::<u8>()?.into(), 8 * u.int_in_range(0..=12)?);
    if u.ratio(1, 4)? {
        let numbers = [address, len, block_len].map(u64::to_be_bytes).concat();
        let own_part = [numbers.as_slice(), &[0; 28], &bitmap].concat();
        return Ok(Fields::of(vec![Field::bytes("virtio", "virtio", virtio::blob(u, own_part)?)]));
    }
    let checks = [("addr", address), ("region_size", len), ("block_size", block_len)];
    let checks = checks.map(|(name, word)| Field::word(name, 8, word)).to_vec();
    Ok(Fields::of(vec![Field::structs("checks", vec![checks]), Field::bytes("bitmap", "bitmap", bitmap)]))
}

fn hints(u: &mut Unstructured<'_>, blocks: &[Block]) -> Result<LayoutHints> {
    let mut hints = LayoutHints::default();
    if u.ratio(1, 4)? {
        hints.below_4g = Some(if u.ratio(1, 2)? { u.int_in_range(0..=64)? << 26 } else { u.arbitrary()? });
    }
    for _ in 0..u.int_in_range(0..=5)?.max(3) - 3 {
        let block = u.choose(blocks)?;
        let part = if u.ratio(1, 2)? {
            let start = u.int_in_range(0..=block.used_length / PAGE)? * PAGE;
            let len = if u.ratio(3, 4)? { u.int_in_range(0..=64)? * PAGE } else { u.arbitrary()? };
            Some(BlockOffset(start)..BlockOffset(start.saturating_add(len)))
        } else {
            None
        };
        let address = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => 0_u64.wrapping_sub(u.int_in_range(0..=3)? * PAGE).wrapping_sub(block.used_length),
            _ => u.int_in_range(0..=0x2_0000)? * PAGE,
        };
        hints.maps.push(MapHint { idstr: block.idstr.clone(), address: PhysicalAddress(address), part });
    }
    if u.ratio(1, 8)? {
        let mut xml = "<domain><devices>".to_owned();
        for nth in 0..u.int_in_range(0..=3)? {
            let base = if u.ratio(3, 4)? { u.int_in_range(0..=99)? << 26 } else { u.arbitrary::<u64>()? };
            let model = u.choose(&["dimm", "virtio-mem", "nvdimm"])?;
            xml.push_str(&format!(
                "<memory model='{model}'><address type='dimm' slot='{nth}' base='0x{base:x}'/></memory>"
            ));
        }
        xml.push_str("</devices></domain>");
        hints.domain_xml = Some(xml.into_bytes());
    }
    Ok(hints)
}

impl Plan {
    /// The stream; none if the blocks are longer than a stream can say.
    fn stream(&self) -> Option<Vec<u8>> {
        let total = self.blocks.iter().try_fold(0_u64, |sum, block| sum.checked_add(block.used_length))?;
        let mut synth = Synth::new();
        if let Some(machine) = self.machine {
            synth = synth.configuration(machine);
            if self.blocks.iter().any(|block| block.mr_addr.is_some()) {
                synth = synth.capabilities(&["x-ignore-shared"]);
            }
        } else if self.blocks.iter().any(|block| block.mr_addr.is_some()) {
            return None;
        }
        let start = [block_list(total, &self.blocks), Records::new().end()].concat();
        synth = synth.start(RAM_ID, "ram", 4, &start);
        let records = self.pages.iter().fold(Records::new(), |records, (nth, at, seed)| {
            let name = &self.blocks[*nth].idstr;
            match seed % 4 {
                0 => records.fill(name, *at, (seed >> 8) as u8),
                _ => records.data(name, *at, &noise((*seed).into(), PAGE as usize)),
            }
        });
        synth = synth.ram_part(records).ram_end(Records::new());
        for (id, (name, fields)) in (40..).zip(&self.devices) {
            synth = fields.put(synth, id, name, 0);
        }
        Some(if self.devices.is_empty() { synth.finish_undescribed() } else { synth.finish() })
    }

    /// Where a byte of the only block is, on boards without anything else.
    fn address(&self, offset: u64) -> Option<u64> {
        let [block] = self.blocks.as_slice() else { return None };
        let hints = &self.hints;
        if !self.devices.is_empty() || !hints.maps.is_empty() || hints.below_4g.is_some() {
            return None;
        }
        let len = block.used_length;
        let low = match (self.machine?, block.idstr.as_slice()) {
            ("pc-i440fx-10.0", b"pc.ram") => {
                if len < 0xe000_0000 {
                    len
                } else {
                    0xc000_0000
                }
            }
            ("pc-q35-10.0", b"pc.ram") => {
                if len < 0xb000_0000 {
                    len
                } else {
                    0x8000_0000
                }
            }
            ("microvm", b"microvm.ram") => len.min(0xc000_0000),
            ("virt-10.0", b"mach-virt.ram") => return 0x4000_0000_u64.checked_add(offset),
            ("virt-10.0", b"riscv_virt_board.ram") => return 0x8000_0000_u64.checked_add(offset),
            ("pseries-10.0", b"ppc_spapr.ram") | ("s390-ccw-virtio-10.0", b"s390.ram") => {
                return Some(offset);
            }
            _ => return None,
        };
        match offset {
            // What is shown there is the chipset's to say.
            0xa_0000..0x10_0000 => None,
            offset if offset < low => Some(offset),
            offset => Some((1 << 32) + (offset - low)),
        }
    }
}

pub fn run(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let Ok(plan) = Plan::arbitrary(&mut u) else { return };
    let Some(bytes) = plan.stream() else { return };
    let stream = match Stream::parse(&bytes) {
        Ok(stream) => stream,
        Err(error) => return check_error(&error, &bytes),
    };
    let Some(ram) = stream.ram() else { return };
    let layout = match Layout::derive(&stream, &plan.hints) {
        Ok(layout) => layout,
        Err(error) => {
            assert!(!plan.hints.maps.is_empty(), "{error}");
            return check_message(&error);
        }
    };
    check_layout(ram, &layout);
    let memory = PhysicalMemory::new(ram, &layout);
    for (nth, at, _) in &plan.pages {
        if let Some(address) = plan.address(*at) {
            let found = layout.find(PhysicalAddress(address)).map(|(block, offset, _)| (block, offset));
            assert_eq!(found, Some((BlockId(*nth), BlockOffset(*at))), "{:?} at {address:#x}", plan.machine);
        }
    }
    // Where the choices end, the rest is not looked at.
    let _ = files::check(&mut u, &stream, &memory);
}

/// Checks that regions ascend, share no address and lie in their blocks, and that
/// each byte of each block has a place, or a reason for having none.
pub fn check_layout(ram: &Ram<'_>, layout: &Layout) {
    let mut end = 0;
    let mut told = vec![Vec::new(); ram.blocks().len()];
    for region in layout.regions() {
        assert!(region.range.start.0 >= end && region.range.start < region.range.end, "{region:?}");
        end = region.range.end.0;
        check_text(&region.derived);
        told[region.block.0].push((region.offset.0, region.offset.0 + region.bytes()));
    }
    let len: u64 = layout.regions().iter().map(|region| region.bytes()).sum();
    assert_eq!(len, layout.bytes());
    for part in layout.unplaced() {
        check_text(&part.reason);
        told[part.block.0].push((part.range.start.0, part.range.end.0));
    }
    layout.assumptions().iter().for_each(|assumption| check_text(&assumption.text));
    for ((_, block, _), mut told) in ram.blocks().zip(told) {
        told.sort_unstable();
        let mut known = 0;
        for (start, end) in told {
            assert!(start <= known, "nothing tells of {} from {known:#x} to {start:#x}", block.idstr);
            assert!(
                start <= end && end <= block.used_length,
                "{} has no {start:#x} to {end:#x}",
                block.idstr
            );
            known = known.max(end);
        }
        assert_eq!(known, block.used_length, "{}", block.idstr);
    }
}
