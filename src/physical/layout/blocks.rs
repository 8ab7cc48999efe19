//! Which RAM blocks are what: the board's RAM, memory plugged in, or no RAM.

use std::collections::{HashMap, HashSet};

use super::Assumption;
use super::draft::{Draft, without};
use super::virtio_mem;
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

/// Why a block is no RAM that is called by a device. Those of virtio-mem are.
const OF_DEVICE: &str = "memory of a device";

/// Why a block is no RAM of the guest, by its name; `None` if it may be.
pub(super) fn reason(idstr: &Idstr) -> Option<&'static str> {
    let name = idstr.as_bytes();
    let has = |part: &[u8]| memchr::memmem::find(name, part).is_some();
    // A memory backend: what follows is what its owner calls it.
    if name.starts_with(b"/objects/") {
        None
    } else if has(b"rom@")
        || name == b"firmware"
        || [&b".rom"[..], b".mrom", b".bios"].iter().any(|end| name.ends_with(end))
    {
        Some("firmware")
    } else if has(b"flash") {
        Some("flash memory")
    } else if has(b"vram") || has(b"vga.") || has(b"ramfb") {
        Some("video memory")
    } else if name.ends_with(b".l2lim")
        || name.starts_with(b"homer-")
        || name == b"virt.secure-ram"
        || name.contains(&b'/')
    {
        Some(OF_DEVICE)
    } else {
        None
    }
}

/// The most parts that the memory of one virtio-mem device has a place each
/// for. Guests that give it back have a few.
pub(super) const PARTS: usize = 4096;

/// The same, of all devices: a part takes two bits of a stream, and a hundred bytes
/// of a layout.
const PARTS_OF_ALL: usize = 65_536;

/// How many directories a block's name has at most, as far as it is looked at.
/// QEMU's have up to three.
const DEPTH: usize = 8;

/// Places memory that was plugged in, as far as something tells where.
pub(super) fn place_plugged(stream: &Stream<'_>, ram: &Ram<'_>, draft: &mut Draft<'_>) {
    place_virtio_mem(stream, ram, draft);
    let mut left: Vec<(BlockId, u64)> =
        backends(ram).into_iter().filter(|(id, _)| !draft.is_main(*id)).collect();
    // There can be as many DIMMs as blocks, and 65,536 of these.
    let mut lens: HashMap<BlockId, u64> = left.iter().copied().collect();
    for (name, address) in super::domain::dimms(draft.hints().domain_xml.as_deref()) {
        if let Some((block, len)) = ram.find(name.as_bytes()).and_then(|block| lens.remove_entry(&block)) {
            draft.place(block, 0..len, address, "DIMM: the domain XML says where".into());
        }
    }
    left.retain(|(block, _)| lens.contains_key(block));
    place_dimms(ram, draft, &left);
}

/// Places the memory of virtio-mem devices.
fn place_virtio_mem(stream: &Stream<'_>, ram: &Ram<'_>, draft: &mut Draft<'_>) {
    let devices = virtio_mem::devices(stream);
    let mut blocks = HashMap::new();
    for (path, len, id) in blocks_at(ram, devices.iter().map(|(path, _)| *path).collect()) {
        // It is missing where the device does not tell, or what it tells cannot be.
        draft.expect(id);
        blocks.entry((path, len)).or_insert(id);
    }
    let mut parts = PARTS_OF_ALL;
    for (path, device) in devices {
        let Some(memory) = virtio_mem::memory_of(&device) else { continue };
        // A device can have several sections: the first that tells counts.
        let Some(block) = blocks.remove(&(path, memory.len)) else { continue };
        if memory.plugged.len() > PARTS.min(parts) {
            let derived = "virtio-mem, plugged in in too many parts to have a place each: all of it";
            draft.place(block, 0..memory.len, memory.address, derived.into());
            continue;
        }
        parts -= memory.plugged.len();
        for part in &memory.plugged {
            if let Some(address) = memory.address.checked_add(part.start) {
                draft.place(block, part.clone(), address, "virtio-mem: its own state says where".into());
            }
        }
        for part in without(0..memory.len, memory.plugged) {
            draft.leave(block, part, "virtio-mem that is not plugged in");
        }
    }
}

/// The blocks of devices at any of `paths`, with the path and their length: their
/// names are the path and a backend's name. There can be as many devices as blocks.
fn blocks_at<'p>(ram: &Ram<'_>, paths: HashSet<&'p [u8]>) -> Vec<(&'p [u8], u64, BlockId)> {
    let mut blocks = Vec::new();
    let is_asked = |idstr: &Idstr| !paths.is_empty() && reason(idstr) == Some(OF_DEVICE);
    for (id, block, _) in ram.blocks().filter(|(_, block, _)| is_asked(&block.idstr)) {
        let name = block.idstr.as_bytes();
        let ends = memchr::memchr_iter(b'/', name).take(DEPTH);
        let found = ends.filter_map(|end| paths.get(name.get(..end)?));
        blocks.extend(found.map(|path| (*path, block.used_length, id)));
    }
    blocks
}

/// Places what must be DIMMs: by their own offsets in the board's window for
/// them, or one behind the other as QEMU does that is not told where.
fn place_dimms(ram: &Ram<'_>, draft: &mut Draft<'_>, dimms: &[(BlockId, u64)]) {
    let Some(window) = draft.device_memory() else { return };
    let mut next = window;
    let dimms: Vec<_> = dimms.iter().filter(|(block, _)| !draft.is_by_hand(*block)).collect();
    for (block, len) in dimms {
        let told = ram.block(*block).and_then(|block| block.mr_addr);
        let Some(address) = told.map_or(Some(next), |offset| window.checked_add(offset)) else { continue };
        let derived = match told {
            Some(_) => "DIMM: the stream says where, from the end of RAM on",
            None => "DIMM: assumed to be plugged in by the order of names, from the end of RAM on",
        };
        if told.is_none() {
            let idstr = ram.block(*block).map(|block| block.idstr.to_string()).unwrap_or_default();
            let text = format!(
                "RAM block \"{idstr}\" is a DIMM at {address:#x}: the stream does not say where DIMMs are"
            );
            draft.assume(Assumption { text: text.into(), option: Some("--map") });
        }
        draft.place(*block, 0..*len, PhysicalAddress(address), derived.into());
        next = address.saturating_add(*len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_backend_is_ram_whatever_its_owner_calls_it() {
        for name in ["/objects/flash", "/objects/vga.vram", "/objects/x.rom", "/objects/a/b", "ram-node0"] {
            assert_eq!(reason(&Idstr::from(name)), None, "{name}");
        }
        for name in
            ["virt.flash0", "0000:00:02.0/vga.vram", "/rom@etc/acpi/rsdp", "0000:00:03.0/virtio-net-pci.rom"]
        {
            assert!(reason(&Idstr::from(name)).is_some(), "{name}");
        }
    }
}
