//! Which RAM blocks are what: the board's RAM, memory plugged in, or no RAM.

use super::Assumption;
use super::draft::Draft;
use crate::idstr::Idstr;
use crate::ram::Ram;
use crate::stream::Stream;
use crate::units::{BlockId, PhysicalAddress};
use crate::vmstate::{State, Virtio};

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
    if has(b"rom@")
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
        || name.contains(&b'/') && !name.starts_with(b"/objects/")
    {
        Some("memory of a device")
    } else {
        None
    }
}

/// Places memory that was plugged in, as far as something tells where.
pub(super) fn place_plugged(stream: &Stream<'_>, ram: &Ram<'_>, draft: &mut Draft<'_>) {
    for (path, address, len) in virtio_mem(stream) {
        // Its block is called by the path of the device and a backend's name.
        let is_its = |idstr: &Idstr| {
            idstr.as_bytes().strip_prefix(&path[..]).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let block = ram.blocks().find(|(_, block, _)| is_its(&block.idstr) && block.used_length == len);
        if let Some((block, ..)) = block {
            draft.place(block, 0..len, address, "virtio-mem: its own state says where".into());
        }
    }
    let mut left: Vec<(BlockId, u64)> =
        backends(ram).into_iter().filter(|(id, _)| !draft.is_main(*id)).collect();
    for (name, address) in super::domain::dimms(draft.hints().domain_xml.as_deref()) {
        if let Some(at) = left.iter().position(|(id, _)| ram.find(name.as_bytes()) == Some(*id)) {
            let (block, len) = left.remove(at);
            draft.place(block, 0..len, address, "DIMM: the domain XML says where".into());
        }
    }
    place_dimms(ram, draft, &left);
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

/// Path of each virtio-mem device, address and length of its memory: in a
/// section before RAM since QEMU 8.0, before that in the device's own.
fn virtio_mem(stream: &Stream<'_>) -> Vec<(Vec<u8>, PhysicalAddress, u64)> {
    let place = |device: crate::stream::Device<'_>| {
        let name = device.section.handler.idstr.as_bytes();
        let end = memchr::memmem::rfind(name, b"/virtio-mem")?;
        let (address, len) = place_of(&device.decode().ok()?, 0)?;
        Some((name.get(..end)?.to_vec(), address, len))
    };
    stream.devices().filter_map(place).collect()
}

/// The checks that virtio-mem makes when it is loaded name its place.
fn place_of(state: &State<'_, '_>, depth: usize) -> Option<(PhysicalAddress, u64)> {
    const DEPTH: usize = 4;
    let number = |name: &str| state.field(name)?.value.as_u64();
    if let (Some(address), Some(len)) = (number("addr"), number("region_size")) {
        return Some((PhysicalAddress(address), len));
    }
    let inner = state.fields.iter().filter_map(|field| field.value.as_struct());
    let inner = inner.chain(state.subsections.iter().map(|subsection| &subsection.state));
    let inner = inner.filter(|_| depth < DEPTH).find_map(|inner| place_of(inner, depth + 1));
    inner.or_else(|| place_in_blob(state))
}

/// The same checks as they stand in the opaque state of a virtio device:
///
/// ```text
/// be64 addr  be64 region_size  be64 block_size  …
/// ```
fn place_in_blob(state: &State<'_, '_>) -> Option<(PhysicalAddress, u64)> {
    let virtio = state.fields.iter().find_map(|field| Virtio::of(field)?.ok())?;
    let (address, rest) = virtio.device.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let block_len = u64::from_be_bytes(*rest.first_chunk()?);
    let (address, len) = (u64::from_be_bytes(*address), u64::from_be_bytes(*len));
    let is_sane = block_len.is_power_of_two() && (address | len).is_multiple_of(block_len) && len > 0;
    is_sane.then_some((PhysicalAddress(address), len))
}
