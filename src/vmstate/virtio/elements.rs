//! Requests in flight: the whole of virtio-blk's own part.
//!
//! ```text
//! { u8 1   [be32 queue: with several]   [be32 ndescs: packed rings]   49168 bytes }
//! u8 0
//! ```
//!
//! The bytes are QEMU's `VirtQueueElementOld`, a C structure of the host's, and
//! stay bytes. Which of the words in front of them there are, the length of
//! the whole tells.
//!
//! Source followed: QEMU `hw/block/virtio-blk.c` (`virtio_blk_save_device`),
//! `hw/virtio/virtio.c` (`qemu_put_virtqueue_element`).

use crate::cursor::Cursor;
use crate::error::Result;
use crate::units::StreamOffset;

/// `sizeof(VirtQueueElementOld)` on hosts of 64 bits.
const ELEMENT_LEN: u64 = 49168;

/// A request in flight.
#[derive(Clone, Debug)]
pub struct VirtioElement<'a> {
    /// Where its structure begins.
    pub offset: StreamOffset,
    /// The words in front of it: the queue, where the device has several; the
    /// number of descriptors, where rings are packed.
    pub words: Vec<u32>,
    /// The structure.
    pub bytes: &'a [u8],
}

/// All elements, if the bytes are a list of them.
pub(super) fn read(cursor: Cursor<'_>) -> Option<Vec<VirtioElement<'_>>> {
    (0..=2).find_map(|word_count| read_with(word_count, cursor).ok().flatten())
}

/// The elements, if each has so many words in front.
fn read_with(word_count: usize, mut cursor: Cursor<'_>) -> Result<Option<Vec<VirtioElement<'_>>>> {
    let mut elements = Vec::new();
    loop {
        match cursor.u8()? {
            0 => return Ok((cursor.remaining() == 0).then_some(elements)),
            1 => {}
            _ => return Ok(None),
        }
        let words = (0..word_count).map(|_| cursor.be32()).collect::<Result<_>>()?;
        let offset = cursor.offset();
        elements.push(VirtioElement { offset, words, bytes: cursor.bytes(ELEMENT_LEN)? });
    }
}
