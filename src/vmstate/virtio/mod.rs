//! The `virtio` blob: the one field of a virtio device's section.
//!
//! QEMU writes it by code and describes it as one opaque field, so nothing in
//! the stream tells its parts apart but their own bytes:
//!
//! ```text
//! transport's part                                             see [`transport`]
//! u8 status  u8 isr  be16 queue_sel  be32 features (low)
//! be32 config_len  config_len bytes                            device's config space
//! be32 count   count × { be32 num  [be32 align: MMIO]  be64 desc
//!                        be16 last_avail_idx  [be16 vector: PCI with MSI-X, CCW] }
//! device's own part                                            no length, layout by device
//! { 05  str8 "virtio/…"  be32 version  … }                     see [`subsections`]
//! ```
//!
//! The device's part ends where the subsections begin that lead to the blob's
//! end, to the byte; without any it ends there itself. A blob that cannot be
//! told apart is an error, and stays the bytes that it is.
//!
//! Source followed: QEMU `hw/virtio/virtio.c` (`virtio_save`).

mod elements;
mod subsections;
mod transport;

use memchr::memmem;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;
use crate::vmstate::value::Field;

pub use elements::VirtioElement;
pub use subsections::{ModernQueue, PackedQueue, Unknown, VirtioExtra, VirtioSubsections};
pub use transport::{Indicator, MsixState, VirtioTransport};

/// QEMU's `VIRTIO_QUEUE_MAX`.
pub(crate) const VIRTIO_QUEUE_MAX: usize = 1024;

/// Places that may be the begin of the subsections that are tried.
const CANDIDATES: usize = 64;

/// A virtio device's state, its blob told apart.
#[derive(Clone, Debug)]
pub struct Virtio<'a> {
    /// How the guest sees the device.
    pub transport: VirtioTransport<'a>,
    /// The device's status register.
    pub status: u8,
    /// The interrupt status register.
    pub isr: u8,
    /// The queue that the guest has selected.
    pub queue_sel: u16,
    /// The features that the guest has accepted: 64 bits, of which old devices
    /// have the low 32.
    pub guest_features: u64,
    /// The device's config space.
    pub config: &'a [u8],
    /// The queues that the device has, up to the first unused one.
    pub queues: Vec<VirtioQueue>,
    /// Where the device's own part begins.
    pub device_offset: StreamOffset,
    /// The device's own part.
    pub device: &'a [u8],
    /// What stands behind it.
    pub subsections: VirtioSubsections<'a>,
}

/// A queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioQueue {
    /// Its size in descriptors.
    pub num: u32,
    /// The alignment of the used ring in bytes; MMIO only.
    pub align: Option<u32>,
    /// The guest address of the descriptors.
    pub desc: u64,
    /// The next entry of the available ring that the device will take.
    pub last_avail_idx: u16,
    /// Its interrupt vector; PCI with MSI-X, and CCW.
    pub vector: Option<u16>,
}

impl<'a> Virtio<'a> {
    /// Tells a field of type `virtio` apart; `None` for any other field.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] and others if its bytes are not what QEMU writes.
    pub fn of(field: &Field<'a, '_>) -> Option<Result<Self>> {
        let is_virtio = field.desc.type_name == "virtio";
        is_virtio.then(|| Self::parse(Cursor::new(field.bytes, field.offset)))
    }

    fn parse(mut cursor: Cursor<'a>) -> Result<Self> {
        let transport = transport::read(&mut cursor).map_err(|error| error.inside("transport"))?;
        let (status, isr, queue_sel) = (cursor.u8()?, cursor.u8()?, cursor.be16()?);
        let features_low = cursor.be32()?;
        let config_len = cursor.be32()?;
        let config = cursor.bytes(config_len.into())?;
        let queues = read_queues(&transport, &mut cursor).map_err(|error| error.inside("queues"))?;
        let device_offset = cursor.offset();
        let (device, subsections) = split_device(cursor)?;
        let guest_features = subsections.features.unwrap_or(features_low.into());
        Ok(Self {
            transport,
            status,
            isr,
            queue_sel,
            guest_features,
            config,
            queues,
            device_offset,
            device,
            subsections,
        })
    }

    /// The requests in flight of a device whose own part is a list of them and
    /// nothing else (virtio-blk); `None` if it is no such list.
    pub fn elements(&self) -> Option<Vec<VirtioElement<'a>>> {
        elements::read(Cursor::new(self.device, self.device_offset))
    }
}

fn read_queues(transport: &VirtioTransport<'_>, cursor: &mut Cursor<'_>) -> Result<Vec<VirtioQueue>> {
    let at = cursor.offset();
    let count = u64::from(cursor.be32()?);
    let bound = VIRTIO_QUEUE_MAX as u64;
    if count > bound {
        return Err(Error::at(at, ErrorKind::Limit { what: "number of queues", met: count, bound }));
    }
    let mut queues = Vec::new();
    for _ in 0..count {
        let at = cursor.offset();
        let num = cursor.be32()?;
        // A queue without a size is the first unused one.
        if !(1..=1 << 15).contains(&num) {
            let kind = ErrorKind::Malformed {
                what: "size of a queue",
                met: num.to_string(),
                expected: "1 to 32768".to_owned(),
            };
            return Err(Error::at(at, kind));
        }
        let align = if transport.has_alignment() { Some(cursor.be32()?) } else { None };
        let (desc, last_avail_idx) = (cursor.be64()?, cursor.be16()?);
        let vector = if transport.has_vectors() { Some(cursor.be16()?) } else { None };
        queues.push(VirtioQueue { num, align, desc, last_avail_idx, vector });
    }
    Ok(queues)
}

/// Tells the device's own part from the subsections behind it.
fn split_device<'a>(cursor: Cursor<'a>) -> Result<(&'a [u8], VirtioSubsections<'a>)> {
    const NAME: &[u8] = b"virtio/";
    // Type byte and length stand before the name.
    const HEAD_LEN: usize = 2;
    let mut first_failure = None;
    let hits = memmem::find_iter(cursor.rest(), NAME).filter_map(|at| at.checked_sub(HEAD_LEN));
    for at in hits.take(CANDIDATES) {
        let mut rest = cursor;
        let device = rest.bytes(at as u64)?;
        match subsections::read(rest) {
            Ok(subsections) => return Ok((device, subsections)),
            Err(error) => first_failure.get_or_insert(error),
        };
    }
    match first_failure {
        Some(error) => Err(error.inside("subsections")),
        None => Ok((cursor.rest(), VirtioSubsections::default())),
    }
}
