//! Which RAM blocks are what: the board's RAM, memory plugged in, or no RAM.

use super::Assumption;
use super::draft::Draft;
use crate::idstr::Idstr;
use crate::ram::Ram;
use crate::stream::Stream;
use crate::units::{BlockId, PhysicalAddress};

/// The blocks that are the board's RAM, in the order in which it is a row.
///
/// That is one block of a name that the board gives, or those of the memory
/// backends that were given instead: one for each NUMA node, in the order of
/// their numbers, which are in their names as a rule. Backends of memory that
/// is plugged in look the same. `told` is how long the row is, if that is known:
/// what is more is not of the board.
pub(super) fn main(ram: &Ram<'_>, ram_id: &[u8], told: Option<u64>) -> Vec<BlockId> {
    if let Some(block) = ram.find(ram_id) {
        return vec![block];
    }
    let mut row = Vec::new();
    let mut len = 0_u64;
    for (id, block_len) in backends(ram) {
        if told.is_some_and(|told| len >= told) {
            break;
        }
        len = len.saturating_add(block_len);
        row.push(id);
    }
    row
}

/// The blocks that are no device's, by name, numbers in names as numbers.
fn backends(ram: &Ram<'_>) -> Vec<(BlockId, u64)> {
    let plain = ram.blocks().filter(|(_, block, _)| reason(&block.idstr).is_none());
    let mut plain: Vec<_> =
        plain.map(|(id, block, _)| (natural(&block.idstr), id, block.used_length)).collect();
    plain.sort();
    plain.into_iter().map(|(_, id, len)| (id, len)).collect()
}

/// A name as text and numbers: `n10` comes behind `n9`.
fn natural(idstr: &Idstr) -> Vec<(Vec<u8>, u64)> {
    let mut parts: Vec<(Vec<u8>, u64)> = Vec::new();
    let mut was_digit = true;
    for byte in idstr.as_bytes() {
        if was_digit && !byte.is_ascii_digit() || parts.is_empty() {
            parts.push((Vec::new(), 0));
        }
        was_digit = byte.is_ascii_digit();
        if let Some((text, number)) = parts.last_mut() {
            match was_digit {
                true => *number = number.saturating_mul(10).saturating_add(u64::from(byte - b'0')),
                false => text.push(*byte),
            }
        }
    }
    parts
}

/// Why a block is no RAM of the guest, by its name; `None` if it may be.
pub(super) fn reason(idstr: &Idstr) -> Option<&'static str> {
    let name = idstr.as_bytes();
    let has = |part: &[u8]| memchr::memmem::find(name, part).is_some();
    if has(b"rom@") || name.ends_with(b".rom") || name.ends_with(b".bios") {
        Some("firmware")
    } else if has(b"flash") {
        Some("flash memory")
    } else if has(b"vram") || has(b"vga.") || has(b"ramfb") {
        Some("video memory")
    } else if name.contains(&b'/') && !name.starts_with(b"/objects/") {
        Some("memory of a device")
    } else {
        None
    }
}

/// Places memory that was plugged in, as far as something tells where.
pub(super) fn place_plugged(stream: &Stream<'_>, ram: &Ram<'_>, draft: &mut Draft<'_>) {
    let mut left: Vec<(BlockId, u64)> =
        backends(ram).into_iter().filter(|(id, _)| !draft.is_main(*id)).collect();
    for (address, len) in virtio_mem(stream) {
        let same_len: Vec<usize> =
            left.iter().enumerate().filter(|(_, (_, known))| *known == len).map(|(nth, _)| nth).collect();
        let Some(first) = same_len.first() else { continue };
        if same_len.len() > 1 {
            let text = format!(
                "of {} RAM blocks of {len:#x} bytes, the first by name is virtio-mem's at {address}",
                same_len.len()
            );
            draft.assume(Assumption { text: text.into(), option: Some("--map") });
        }
        let (block, len) = left.remove(*first);
        draft.place(block, 0..len, address, "virtio-mem: its section before RAM says where".into());
    }
    for (name, address) in super::domain::dimms(draft.hints().domain_xml.as_deref()) {
        if let Some(at) = left.iter().position(|(id, _)| ram.find(name.as_bytes()) == Some(*id)) {
            let (block, len) = left.remove(at);
            draft.place(block, 0..len, address, "DIMM: the domain XML says where".into());
        }
    }
}

/// Address and length of the memory of each virtio-mem device.
fn virtio_mem(stream: &Stream<'_>) -> Vec<(PhysicalAddress, u64)> {
    let is_early = |name: &Idstr| name.as_bytes().ends_with(b"virtio-mem-device-early");
    let devices = stream.devices().filter(|device| is_early(&device.section.handler.idstr));
    let place = |device: crate::stream::Device<'_>| {
        let state = device.decode().ok()?;
        let number = |name: &str| state.field(name)?.value.as_u64();
        Some((PhysicalAddress(number("addr")?), number("region_size")?))
    };
    devices.filter_map(place).collect()
}
