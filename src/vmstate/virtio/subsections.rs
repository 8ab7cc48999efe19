//! The last part of a `virtio` blob: subsections of a description that is
//! never written down.
//!
//! ```text
//! 05 str8 name be32 version, and then, each at most once and in this order:
//!   virtio/device_endian       u8 1: little, 2: big
//!   virtio/64bit_features      be64
//!   virtio/128bit_features     be64 features 64 to 127                     10.2
//!   virtio/virtqueues          1024 × { be64 avail  be64 used }
//!   virtio/ringsize            1024 × be32
//!   virtio/broken              u8
//!   virtio/extra_state         05 str8 "virtio_pci/modern_state" be32 version
//!                              be32 dfselect  be32 gfselect  2 × be32 features
//!                              1024 × { be16 num  0  u8 enabled  6 × be32 }
//!                              [05 str8 "virtio_pci/modern_state/features128" be32 version  2 × be32]
//!                              or 05 str8 "virtio_mmio/state" be32 version
//!                              2 × be32 features
//!                              1024 × { be16 num  u8 enabled  6 × be32 }
//!   virtio/started             u8
//!   virtio/packed_virtqueues   1024 × { be16 idx  u8 wrap  be16 used_idx  u8 wrap  be32 inuse }
//!   virtio/disabled            u8
//! ```
//!
//! Source followed: QEMU `hw/virtio/virtio.c` (`vmstate_virtio`),
//! `hw/virtio/virtio-pci.c`, `hw/virtio/virtio-mmio.c`.

use memchr::memmem;

use super::VIRTIO_QUEUE_MAX;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::record;

/// What stands behind a virtio device's own part. Tables have an entry for
/// each of the 1024 queues that a device can have.
#[derive(Clone, Default, Debug)]
pub struct VirtioSubsections<'a> {
    /// The device's byte order: 1 little, 2 big.
    pub device_endian: Option<u8>,
    /// All features that the guest has accepted.
    pub features: Option<u64>,
    /// Features 64 to 127 that the guest has accepted.
    pub features_high: Option<u64>,
    virtqueues: Option<&'a [u8]>,
    ringsize: Option<&'a [u8]>,
    /// Whether the device has met something that it cannot go on from.
    pub broken: Option<u8>,
    /// What the transport has besides.
    pub extra: Option<VirtioExtra<'a>>,
    /// Whether the guest has started the device.
    pub started: Option<u8>,
    packed: Option<&'a [u8]>,
    /// Whether the device is disabled.
    pub disabled: Option<u8>,
    /// Subsections that are not known, with their bytes.
    pub unknown: Vec<Unknown<'a>>,
}

/// A subsection that is not known.
#[derive(Clone, Copy, Debug)]
pub struct Unknown<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its version.
    pub version_id: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// What the transport keeps besides, for devices of VIRTIO 1.
#[derive(Clone, Copy, Debug)]
pub struct VirtioExtra<'a> {
    /// Which half of the device's features the guest sees; PCI.
    pub dfselect: Option<u32>,
    /// Which half of its own features the guest sets; PCI.
    pub gfselect: Option<u32>,
    /// The features as the guest wrote them, 32 each.
    pub guest_features: [u32; 2],
    /// The next 64 of them; PCI since 10.2.
    pub guest_features_high: Option<[u32; 2]>,
    queues: &'a [u8],
    /// Bytes before `enabled`: 3 in PCI, 2 in MMIO.
    enabled_at: usize,
}

/// A queue as the guest has set it up, maybe not yet enabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModernQueue {
    /// Its size.
    pub num: u16,
    /// Whether it is enabled.
    pub enabled: bool,
    /// The guest address of the descriptors.
    pub desc: u64,
    /// The guest address of the available ring.
    pub avail: u64,
    /// The guest address of the used ring.
    pub used: u64,
}

/// A packed ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedQueue {
    /// The next descriptor that the device will take.
    pub last_avail_idx: u16,
    /// The wrap counter there.
    pub last_avail_wrap_counter: bool,
    /// The next descriptor that the device will give back.
    pub used_idx: u16,
    /// The wrap counter there.
    pub used_wrap_counter: bool,
    /// Descriptors in use.
    pub inuse: u32,
}

const RING_LEN: usize = 16;
const RINGSIZE_LEN: usize = 4;
const PACKED_LEN: usize = 10;

impl VirtioSubsections<'_> {
    /// The guest addresses of a queue's available and used rings.
    pub fn rings(&self, queue: usize) -> Option<(u64, u64)> {
        let mut cursor = entry(self.virtqueues?, RING_LEN, queue)?;
        Some((cursor.be64().ok()?, cursor.be64().ok()?))
    }

    /// The size that a queue has after a reset.
    pub fn default_num(&self, queue: usize) -> Option<u32> {
        entry(self.ringsize?, RINGSIZE_LEN, queue)?.be32().ok()
    }

    /// The state of a queue that is a packed ring.
    pub fn packed(&self, queue: usize) -> Option<PackedQueue> {
        let mut cursor = entry(self.packed?, PACKED_LEN, queue)?;
        Some(PackedQueue {
            last_avail_idx: cursor.be16().ok()?,
            last_avail_wrap_counter: cursor.u8().ok()? != 0,
            used_idx: cursor.be16().ok()?,
            used_wrap_counter: cursor.u8().ok()? != 0,
            inuse: cursor.be32().ok()?,
        })
    }
}

impl VirtioExtra<'_> {
    /// A queue as the guest has set it up.
    pub fn queue(&self, queue: usize) -> Option<ModernQueue> {
        const ADDRESSES_LEN: usize = 24;
        let mut cursor = entry(self.queues, self.enabled_at + 1 + ADDRESSES_LEN, queue)?;
        let num = cursor.be16().ok()?;
        cursor.bytes(self.enabled_at as u64 - 2).ok()?;
        let enabled = cursor.u8().ok()? != 0;
        // The low half comes first.
        let mut address = || Some(u64::from(cursor.be32().ok()?) | u64::from(cursor.be32().ok()?) << 32);
        Some(ModernQueue { num, enabled, desc: address()?, avail: address()?, used: address()? })
    }
}

/// The entry of a queue in a table.
fn entry(table: &[u8], len: usize, queue: usize) -> Option<Cursor<'_>> {
    let entry = table.chunks_exact(len).nth(queue)?;
    Some(Cursor::new(entry, crate::units::StreamOffset(0)))
}

/// Reads all subsections from `cursor` to the end.
pub(super) fn read(mut cursor: Cursor<'_>) -> Result<VirtioSubsections<'_>> {
    let mut subsections = VirtioSubsections::default();
    while cursor.remaining() > 0 {
        let (name, version_id) = read_head(&mut cursor)?;
        subsections.take(name, version_id, &mut cursor)?;
    }
    Ok(subsections)
}

fn read_head<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a [u8], u32)> {
    let at = cursor.offset();
    let byte = cursor.u8()?;
    let name = cursor.str8()?;
    if byte != record::QEMU_VM_SUBSECTION || !name.starts_with(b"virtio") || !name.is_ascii() {
        let kind = ErrorKind::Malformed {
            what: "begin of a subsection",
            met: format!("{byte:#04x} {}", crate::Idstr::from(name)),
            expected: "0x05 and a name like virtio/…".to_owned(),
        };
        return Err(Error::at(at, kind));
    }
    Ok((name, cursor.be32()?))
}

impl<'a> VirtioSubsections<'a> {
    fn take(&mut self, name: &'a [u8], version_id: u32, cursor: &mut Cursor<'a>) -> Result<()> {
        let mut table = |len: usize| cursor.bytes((VIRTIO_QUEUE_MAX * len) as u64).map(Some);
        match name {
            b"virtio/virtqueues" => self.virtqueues = table(RING_LEN)?,
            b"virtio/ringsize" => self.ringsize = table(RINGSIZE_LEN)?,
            b"virtio/packed_virtqueues" => self.packed = table(PACKED_LEN)?,
            b"virtio/device_endian" => self.device_endian = Some(cursor.u8()?),
            b"virtio/64bit_features" => self.features = Some(cursor.be64()?),
            b"virtio/128bit_features" => self.features_high = Some(cursor.be64()?),
            b"virtio/broken" => self.broken = Some(cursor.u8()?),
            b"virtio/started" => self.started = Some(cursor.u8()?),
            b"virtio/disabled" => self.disabled = Some(cursor.u8()?),
            b"virtio/extra_state" => self.extra = read_extra(cursor)?,
            _ => {
                let bytes = cursor.bytes(len_of_unknown(cursor.rest()) as u64)?;
                self.unknown.push(Unknown { name, version_id, bytes });
            }
        }
        Ok(())
    }
}

/// Bytes up to where the next subsection seems to begin.
fn len_of_unknown(rest: &[u8]) -> usize {
    const NAME: &[u8] = b"virtio/";
    let is_begin = |at: &usize| rest.get(*at) == Some(&record::QEMU_VM_SUBSECTION);
    let mut hits = memmem::find_iter(rest, NAME).filter_map(|at| at.checked_sub(2));
    hits.find(is_begin).unwrap_or(rest.len())
}

/// Reads the transport's part; `None` if it has nothing to say.
fn read_extra<'a>(cursor: &mut Cursor<'a>) -> Result<Option<VirtioExtra<'a>>> {
    let mut ahead = *cursor;
    let Ok((name, _)) = read_head(&mut ahead) else { return Ok(None) };
    let enabled_at = match name {
        b"virtio_pci/modern_state" => 3,
        b"virtio_mmio/state" => 2,
        _ => return Ok(None),
    };
    let is_pci = enabled_at == 3;
    let (dfselect, gfselect) = if is_pci { (Some(ahead.be32()?), Some(ahead.be32()?)) } else { (None, None) };
    let guest_features = [ahead.be32()?, ahead.be32()?];
    let queues = ahead.bytes((VIRTIO_QUEUE_MAX * (enabled_at + 1 + 24)) as u64)?;
    let mut behind = ahead;
    let guest_features_high = match read_head(&mut behind) {
        Ok((b"virtio_pci/modern_state/features128", _)) => {
            let features = [behind.be32()?, behind.be32()?];
            ahead = behind;
            Some(features)
        }
        _ => None,
    };
    *cursor = ahead;
    Ok(Some(VirtioExtra { dfselect, gfselect, guest_features, guest_features_high, queues, enabled_at }))
}
