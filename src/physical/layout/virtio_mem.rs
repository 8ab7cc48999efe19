//! Where a virtio-mem device has memory, and how much of it is plugged in.
//!
//! ```text
//! be64 addr  be64 region_size  be64 block_size  be32 node     checks of the loading QEMU
//! be64 usable_region_size  be64 size  be64 requested_size
//! bitmap: a bit for each block that is plugged in
//! ```
//!
//! Since QEMU 8.0 the checks, `size` and the bitmap stand in a section before
//! RAM; before that all of it is the device's own part of its virtio state.
//!
//! Source followed: QEMU `hw/virtio/virtio-mem.c`.

use std::ops::Range;

use super::blocks::PARTS;
use crate::stream::{Device, Stream};
use crate::units::PhysicalAddress;
use crate::vmstate::{State, Value, Virtio};

/// The memory of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct VirtioMem {
    pub(super) address: PhysicalAddress,
    pub(super) len: u64,
    /// The parts of it that are plugged in, ascending: no more than one above
    /// [`PARTS`].
    pub(super) plugged: Vec<Range<u64>>,
}

/// The path of each device, and the device.
pub(super) fn devices<'s>(stream: &'s Stream<'_>) -> Vec<(&'s [u8], Device<'s>)> {
    let place = |device: Device<'s>| {
        let name = device.section.handler.idstr.as_bytes();
        let end = memchr::memmem::rfind(name, b"/virtio-mem")?;
        Some((name.get(..end)?, device))
    };
    stream.devices().filter_map(place).collect()
}

/// The memory of a device, if its state tells.
pub(super) fn memory_of(device: &Device<'_>) -> Option<VirtioMem> {
    of_state(&device.decode().ok()?, 0)
}

fn of_state(state: &State<'_, '_>, depth: usize) -> Option<VirtioMem> {
    const DEPTH: usize = 4;
    let inner: Vec<&State<'_, '_>> =
        state.fields.iter().filter_map(|field| field.value.as_struct()).collect();
    let bitmap = state.fields.iter().find_map(|field| match &field.value {
        Value::Words(words) if field.desc.name == "bitmap" => Some(words.as_slice()),
        _ => None,
    });
    // The checks are a structure beside the bitmap.
    let number = |state: &State<'_, '_>, name: &str| state.field(name)?.value.as_u64();
    let beside = inner.iter().find_map(|checks| {
        let (address, len) = (number(checks, "addr")?, number(checks, "region_size")?);
        memory(address, len, number(checks, "block_size")?, bitmap.unwrap_or_default())
    });
    let further = || {
        let subsections = state.subsections.iter().map(|subsection| &subsection.state);
        let further = inner.iter().copied().chain(subsections).filter(|_| depth < DEPTH);
        further.into_iter().find_map(|inner| of_state(inner, depth + 1))
    };
    beside.or_else(further).or_else(|| of_blob(state))
}

fn of_blob(state: &State<'_, '_>) -> Option<VirtioMem> {
    /// Bytes between `block_size` and the bitmap.
    const BETWEEN: usize = 4 + 3 * 8;
    let virtio = state.fields.iter().find_map(|field| Virtio::of(field)?.ok())?;
    let (words, _) = virtio.device.as_chunks::<8>();
    let checks: Vec<u64> = words.iter().take(3).map(|word| u64::from_be_bytes(*word)).collect();
    let [address, len, block_len] = checks.try_into().ok()?;
    let (bitmap, _) = virtio.device.get(3 * 8 + BETWEEN..)?.as_chunks::<8>();
    let bitmap: Vec<u64> = bitmap.iter().map(|word| u64::from_be_bytes(*word)).collect();
    memory(address, len, block_len, &bitmap)
}

/// Memory of these numbers, if they can be: what is not in the bitmap is not
/// plugged in.
fn memory(address: u64, len: u64, block_len: u64, bitmap: &[u64]) -> Option<VirtioMem> {
    let is_sane = block_len.is_power_of_two() && (address | len).is_multiple_of(block_len) && len > 0;
    if !is_sane {
        return None;
    }
    let mut plugged: Vec<Range<u64>> = Vec::new();
    let words = (0_u64..).zip(bitmap);
    let bits = words.flat_map(|(nth, word)| {
        (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| nth * 64 + bit)
    });
    for bit in bits {
        let start = bit.checked_mul(block_len).filter(|start| *start < len && plugged.len() <= PARTS);
        let Some(start) = start else { break };
        match plugged.last_mut() {
            Some(last) if last.end == start => last.end = start + block_len,
            _ => plugged.push(start..start + block_len),
        }
    }
    Some(VirtioMem { address: PhysicalAddress(address), len, plugged })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bitmap: &[u64], plugged: &[Range<u64>]) {
        assert_eq!(memory(1 << 32, 130 << 21, 1 << 21, bitmap).unwrap().plugged, plugged);
    }

    #[test]
    fn bits_that_follow_each_other_are_one_part() {
        check(&[], &[]);
        check(&[0b1011, 0, u64::MAX], &[0..2 << 21, 3 << 21..4 << 21, 128 << 21..130 << 21]);
        check(&[1 << 63, 1], std::slice::from_ref(&(63 << 21..65 << 21)));
    }

    #[test]
    fn numbers_that_cannot_be_are_none() {
        assert_eq!(memory(0, 1 << 21, 0, &[1]), None);
        assert_eq!(memory(1, 1 << 21, 1 << 21, &[1]), None);
        assert_eq!(memory(0, 0, 1 << 21, &[1]), None);
    }
}
