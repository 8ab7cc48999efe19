//! Finding the description before the walk has reached it.
//!
//! ```text
//! 00  06  be32 length  {…}
//! ```
//!
//! It stands at the end of the stream, but is needed to find the ends of the
//! devices before it. So it is looked for: forward from the first device, or
//! backward from the end of the file where a device stands before RAM. What
//! is found counts only when the walk then arrives at exactly that place:
//! guest memory and stale tails of older streams can hold such bytes too.

use memchr::memrchr;

use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::units::StreamOffset;
use crate::vmstate::vmdesc::VmDesc;
use crate::wire::{limit, record};

/// Bytes from the end of the records to the text: EOF, type, length.
pub(crate) const HEAD_LEN: u64 = 6;

/// A description and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Located<'a> {
    /// Where the EOF byte is that it stands behind.
    pub(crate) eof: StreamOffset,
    pub(crate) text: &'a [u8],
    pub(crate) desc: VmDesc,
}

/// The text of a description whose EOF byte is at `eof`, by its length alone.
fn text_at(input: &[u8], eof: usize) -> Option<&[u8]> {
    let mut head = Cursor::new(input.get(eof..)?, StreamOffset(eof as u64));
    let is_head = head.u8().ok()? == record::QEMU_VM_EOF && head.u8().ok()? == record::QEMU_VM_VMDESCRIPTION;
    let len = head.be32().ok()?;
    if !is_head || u64::from(len) > limit::VMDESC_LEN {
        return None;
    }
    head.bytes(len.into()).ok().filter(|text| text.starts_with(b"{") && text.ends_with(b"}"))
}

fn read_at(input: &[u8], eof: usize) -> Option<Located<'_>> {
    let text = text_at(input, eof)?;
    let desc = VmDesc::parse(text).ok()?;
    Some(Located { eof: StreamOffset(eof as u64), text, desc })
}

/// The description that ends where the input does, zero padding aside.
///
/// Costs no more than reading the text: its last byte is `}`, it holds no
/// zero byte, and the length before it holds one or ends behind one, as no
/// description has 16 MiB and more without that.
pub(crate) fn at_end(input: Bytes<'_>) -> Option<Located<'_>> {
    let unpadded = input.slice().get(..input.zeros_start())?;
    if !unpadded.ends_with(b"}") {
        return None;
    }
    // The last zero byte is one of the length's, or the EOF byte.
    let zero = memrchr(0, unpadded)?;
    let is_at_end = |text: &[u8]| unpadded.as_ptr_range().end == text.as_ptr_range().end;
    (zero.saturating_sub(5)..=zero)
        .rev()
        .filter(|eof| text_at(unpadded, *eof).is_some_and(is_at_end))
        .find_map(|eof| read_at(unpadded, eof))
}

/// What looks like a description at or behind `from`, in order, if its first
/// device is `is_first`'s.
///
/// At most a few are given, and the texts read for them add up to no more
/// than twice what is left of the input, holes aside.
pub(crate) fn candidates<'a>(
    from: Bytes<'a>,
    is_first: impl Fn(&VmDesc) -> bool,
) -> impl Iterator<Item = Located<'a>> {
    const HEAD: &[u8] = &[record::QEMU_VM_EOF, record::QEMU_VM_VMDESCRIPTION];
    let behind = from.slice();
    let mut budget = (from.len() as u64).saturating_mul(2);
    from.places(HEAD)
        .filter(move |eof| {
            let Some(text) = text_at(behind, *eof) else { return false };
            // Of a text with a hole in it no more is read than up to there.
            let data_len = from.data_len();
            budget = budget.min(data_len.saturating_mul(2));
            let left = budget.checked_sub((text.len() as u64).min(data_len));
            left.map(|left| budget = left).is_some()
        })
        .filter_map(move |eof| {
            let located = read_at(behind, eof)?;
            Some(Located { eof: from.offset_of(located.eof)?, ..located })
        })
        .filter(move |located| is_first(&located.desc))
        .take(limit::VMDESC_CANDIDATES)
}
