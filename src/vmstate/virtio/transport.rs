//! The first part of a `virtio` blob: how the guest sees the device.
//!
//! ```text
//! PCI    be32 2   256 or 4096 bytes of config space   4 × be32 irq state
//!        [n × 16 bytes, ⌈n/8⌉ bytes   be16 config vector]     with MSI-X
//! CCW    subchannel   3 × { be32 len  be64 address }   be16 config vector
//!        be64 indicator offset   [be32 summary offset]   u8 isc   be32 revision
//! MMIO   be32 host_features_sel   be32 guest_features_sel   be32 guest_page_shift
//! ```
//!
//! Which one it is, its bytes tell: the vendor 1af4 at its place in PCI's config
//! space, the control unit type 3832 in that of CCW's subchannel. The length of
//! PCI's config space and the number of its MSI-X vectors stand in its
//! capabilities.
//!
//! Sources followed: QEMU `hw/virtio/virtio-pci.c` (`virtio_pci_save_config`),
//! `hw/pci/pci.c`, `hw/pci/msix.c`, `hw/virtio/virtio-mmio.c`,
//! `hw/s390x/virtio-ccw.c` (`vmstate_virtio_ccw_dev`), `hw/s390x/css.c`
//! (`vmstate_subch_dev`).

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::record;

/// How the guest sees a virtio device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VirtioTransport<'a> {
    /// A PCI device.
    Pci {
        /// Its config space: 256 bytes, or 4096 with PCI Express.
        config_space: &'a [u8],
        /// Its interrupt lines.
        irq_state: [u32; 4],
        /// Its MSI-X vectors, if it has that capability.
        msix: Option<MsixState<'a>>,
    },
    /// A register window.
    Mmio {
        /// Which half of the device's features the guest sees.
        host_features_sel: u32,
        /// Which half of its own features the guest sets.
        guest_features_sel: u32,
        /// log2 of the guest's page size; version 1 of the interface.
        guest_page_shift: u32,
    },
    /// A channel device.
    Ccw {
        /// Its subchannel, as QEMU's `s390_subch_dev` has it.
        subchannel: &'a [u8],
        /// Its device number.
        devno: u16,
        /// The indicators of queues, of the config, and the summary.
        indicators: [Indicator; 3],
        /// The vector of config changes.
        config_vector: u16,
        /// The offset of its indicators in those of its adapter.
        ind_offset: u64,
        /// The offset of its summary indicator; the subsection
        /// `s390_adapter_info/summary_offset` has it, if there is one.
        summary_offset: Option<u32>,
        /// The interrupt subclass of adapter interrupts.
        thinint_isc: u8,
        /// The revision that the guest has chosen, -1 if none.
        revision: i32,
    },
}

/// The MSI-X vectors of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixState<'a> {
    /// The table: 16 bytes each, little-endian.
    pub table: &'a [u8],
    /// The pending bits.
    pub pending: &'a [u8],
    /// The vector of config changes; 0xffff is none.
    pub config_vector: u16,
}

/// A place in the guest's memory where bits stand for interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indicator {
    /// Its length in bytes; 0 if there is none.
    pub len: i32,
    /// Its guest address.
    pub address: u64,
}

impl VirtioTransport<'_> {
    /// Whether queues have an alignment of their own.
    pub(super) fn has_alignment(&self) -> bool {
        matches!(self, Self::Mmio { .. })
    }

    /// Whether queues have interrupt vectors.
    pub(super) fn has_vectors(&self) -> bool {
        match self {
            Self::Pci { msix, .. } => msix.is_some(),
            Self::Mmio { .. } => false,
            Self::Ccw { .. } => true,
        }
    }
}

pub(super) fn read<'a>(cursor: &mut Cursor<'a>) -> Result<VirtioTransport<'a>> {
    if is_pci(cursor.rest()) {
        return read_pci(cursor);
    }
    if is_ccw(cursor.rest()) {
        return read_ccw(cursor);
    }
    Ok(VirtioTransport::Mmio {
        host_features_sel: cursor.be32()?,
        guest_features_sel: cursor.be32()?,
        guest_page_shift: cursor.be32()?,
    })
}

/// The version of QEMU's `PCIDevice`, then the little-endian vendor id.
fn is_pci(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0, 0, 0, 2, 0xf4, 0x1a])
}

fn read_pci<'a>(cursor: &mut Cursor<'a>) -> Result<VirtioTransport<'a>> {
    const CONFIG_LEN: u64 = 256;
    const EXPRESS_CONFIG_LEN: u64 = 4096;
    const CAP_EXPRESS: u8 = 0x10;
    const CAP_MSIX: u8 = 0x11;
    cursor.be32()?;
    let conventional = cursor.clone().bytes(CONFIG_LEN)?;
    let has_express = capability(conventional, CAP_EXPRESS).is_some();
    let config_space = cursor.bytes(if has_express { EXPRESS_CONFIG_LEN } else { CONFIG_LEN })?;
    let irq_state = [cursor.be32()?, cursor.be32()?, cursor.be32()?, cursor.be32()?];
    if irq_state.iter().any(|line| *line > 1) {
        let kind = ErrorKind::Malformed {
            what: "interrupt lines of a PCI device",
            met: format!("{irq_state:x?}"),
            expected: "0 or 1 each".to_owned(),
        };
        return Err(Error::at(cursor.offset(), kind));
    }
    let msix = match capability(conventional, CAP_MSIX) {
        Some([_, _, low, high]) => {
            let count = u64::from(u16::from_le_bytes([low, high]) & 0x7ff) + 1;
            let table = cursor.bytes(count * 16)?;
            let pending = cursor.bytes(count.div_ceil(8))?;
            Some(MsixState { table, pending, config_vector: cursor.be16()? })
        }
        None => None,
    };
    Ok(VirtioTransport::Pci { config_space, irq_state, msix })
}

/// The first four bytes of a PCI capability, if the device has it.
fn capability(config: &[u8], id: u8) -> Option<[u8; 4]> {
    const STATUS: usize = 0x06;
    const STATUS_CAP_LIST: u8 = 0x10;
    const CAPABILITY_LIST: usize = 0x34;
    // As many as fit: a list may lead in a circle.
    const CAPABILITIES: usize = 48;
    if config.get(STATUS)? & STATUS_CAP_LIST == 0 {
        return None;
    }
    let mut at = usize::from(config.get(CAPABILITY_LIST)? & !3);
    for _ in 0..CAPABILITIES {
        let head = config.get(at..)?.first_chunk::<4>()?;
        let [met, next, ..] = *head;
        if at == 0 {
            return None;
        }
        if met == id {
            return Some(*head);
        }
        at = usize::from(next & !3);
    }
    None
}

/// Bytes of a subchannel before its sense id, that of its sense id, and of the
/// two bytes behind that.
const BEFORE_SENSE_ID: usize = 7 + 52 + 32 + 8 + 8 + 1;
const SENSE_ID_LEN: usize = 8 + 62 * 4;
const SUBCHANNEL_LEN: usize = BEFORE_SENSE_ID + SENSE_ID_LEN + 2;

/// A sense id begins with ff and, of a virtio device, 3832.
fn is_ccw(bytes: &[u8]) -> bool {
    const VIRTIO_CCW_SENSE_ID: [u8; 3] = [0xff, 0x38, 0x32];
    bytes.get(BEFORE_SENSE_ID..).is_some_and(|sense_id| sense_id.starts_with(&VIRTIO_CCW_SENSE_ID))
}

fn read_ccw<'a>(cursor: &mut Cursor<'a>) -> Result<VirtioTransport<'a>> {
    let start = *cursor;
    cursor.bytes(SUBCHANNEL_LEN as u64)?;
    // Old machine types have none.
    let _ = subsection(cursor, b"s390_subch_dev/orb", 12)?;
    let len = cursor.offset().0 - start.offset().0;
    let subchannel = start.clone().bytes(len)?;
    // Behind the ids of channel subsystem, set and subchannel.
    let mut ids = start;
    ids.be32()?;
    let devno = ids.be16()?;
    let mut indicator = || Ok(Indicator { len: cursor.be32()?.cast_signed(), address: cursor.be64()? });
    let indicators = [indicator()?, indicator()?, indicator()?];
    let (config_vector, ind_offset) = (cursor.be16()?, cursor.be64()?);
    let summary_offset = match subsection(cursor, b"s390_adapter_info/summary_offset", 4)? {
        Some(mut body) => Some(body.be32()?),
        None => None,
    };
    Ok(VirtioTransport::Ccw {
        subchannel,
        devno,
        indicators,
        config_vector,
        ind_offset,
        summary_offset,
        thinint_isc: cursor.u8()?,
        revision: cursor.be32()?.cast_signed(),
    })
}

/// Reads the subsection `name` of `len` bytes, if it comes next.
fn subsection<'a>(cursor: &mut Cursor<'a>, name: &[u8], len: u64) -> Result<Option<Cursor<'a>>> {
    let mut ahead = *cursor;
    let is_it = ahead.u8().is_ok_and(|byte| byte == record::QEMU_VM_SUBSECTION)
        && ahead.str8().is_ok_and(|met| met == name);
    if !is_it {
        return Ok(None);
    }
    ahead.be32()?;
    let body = ahead;
    ahead.bytes(len)?;
    *cursor = ahead;
    Ok(Some(body))
}
