//! XBZRLE: a page as what has changed since it was sent last.
//!
//! ```text
//! u8 0x01 (ENCODING_FLAG_XBZRLE)  be16 len  len bytes of pairs:
//!     ULEB128 bytes to keep    0 only in the first pair
//!     ULEB128 bytes to take    1 or more, then as many bytes: the new content
//! ```
//!
//! Lengths are ULEB128 of one or two bytes. What stands behind the last pair
//! of the page is kept. Despite the name nothing is XORed.
//!
//! Source followed: QEMU `migration/xbzrle.c` (`xbzrle_decode_buffer`),
//! `migration/ram.c` (`load_xbzrle`).

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::units::TargetPageSize;

/// What stands before the length.
const ENCODING_FLAG_XBZRLE: u8 = 0x01;

/// Reads a record's payload: the pairs.
pub(crate) fn read_payload<'a>(cursor: &mut Cursor<'a>, page_size: TargetPageSize) -> Result<&'a [u8]> {
    let at = cursor.offset();
    let encoding = cursor.u8()?;
    if encoding != ENCODING_FLAG_XBZRLE {
        let met = format!("encoding {encoding:#04x}");
        let expected = format!("{ENCODING_FLAG_XBZRLE:#04x}, the only one there is");
        return Err(Error::at(at, ErrorKind::Malformed { what: "XBZRLE page", met, expected }));
    }
    let len = u64::from(cursor.be16()?);
    if len > page_size.bytes() {
        let bound = page_size.bytes();
        return Err(Error::at(at, ErrorKind::Limit { what: "length of an XBZRLE page", met: len, bound }));
    }
    cursor.bytes(len)
}

/// Lays a delta over the page's content before it. `delta` stands at a
/// record's payload.
pub(crate) fn apply(mut delta: Cursor<'_>, page: &mut [u8], page_size: TargetPageSize) -> Result<()> {
    let begin = delta.offset();
    let pairs = read_payload(&mut delta, page_size)?;
    let at = begin.checked_add(3).unwrap_or(begin);
    let mut pairs = Cursor::new(pairs, at);
    let mut rest = page;
    let mut is_first = true;
    while pairs.remaining() > 0 {
        let keep = read_run(&mut pairs)?;
        if keep == 0 && !is_first {
            return Err(malformed(&pairs, "a run of 0 bytes to keep", "1 or more behind the first pair"));
        }
        is_first = false;
        let take = read_run(&mut pairs)?;
        if take == 0 {
            return Err(malformed(&pairs, "a run of 0 new bytes", "1 or more"));
        }
        let new = pairs.bytes(take as u64)?;
        let slot = rest.get_mut(keep..).and_then(|behind| behind.split_at_mut_checked(take));
        let Some((slot, behind)) = slot else {
            return Err(malformed(&pairs, "runs past the end of the page", "runs inside the page"));
        };
        slot.copy_from_slice(new);
        rest = behind;
    }
    Ok(())
}

/// Reads the length of a run: ULEB128 of at most two bytes.
fn read_run(pairs: &mut Cursor<'_>) -> Result<usize> {
    let low = pairs.u8()?;
    if low & 0x80 == 0 {
        return Ok(low.into());
    }
    let high = pairs.u8()?;
    if high & 0x80 != 0 {
        return Err(malformed(pairs, "a length of three bytes or more", "two at most"));
    }
    Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
}

fn malformed(at: &Cursor<'_>, met: &str, expected: &str) -> Error {
    let (met, expected) = (met.to_owned(), expected.to_owned());
    Error::at(at.offset(), ErrorKind::Malformed { what: "XBZRLE page", met, expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::StreamOffset;

    fn applied(pairs: &[u8]) -> Result<Vec<u8>> {
        let len = u16::try_from(pairs.len()).unwrap();
        let record = [&[1], len.to_be_bytes().as_slice(), pairs].concat();
        let mut page = vec![0xaa; 256];
        let size = TargetPageSize::from_bytes(256).unwrap();
        apply(Cursor::new(&record, StreamOffset(0)), &mut page, size)?;
        Ok(page)
    }

    #[test]
    fn keeps_and_takes() {
        let mut expected = vec![0xaa; 256];
        expected[0] = 1;
        expected[3..5].copy_from_slice(&[2, 3]);
        expected[255] = 4;
        assert_eq!(applied(&[0, 1, 1, 2, 2, 2, 3, 0x80 | 122, 1, 1, 4]).unwrap(), expected);
        assert_eq!(applied(&[]).unwrap(), [0xaa; 256]);
    }

    #[test]
    fn refuses_what_no_encoder_writes() {
        for pairs in [
            [0].as_slice(),         // nothing to take
            &[1, 0],                // none to take
            &[1, 1, 9, 0, 1, 9],    // none to keep behind the first pair
            &[1, 2, 9],             // too few bytes
            &[0x80],                // half a length
            &[0x80, 0x80, 1, 1, 1], // three bytes of length
            &[0x80, 2, 1, 1],       // starts at the end of the page
            &[0xff, 1, 2, 1, 1],    // leaves the page
        ] {
            assert!(applied(pairs).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn refuses_other_encodings_and_what_is_longer_than_a_page() {
        let size = TargetPageSize::from_bytes(256).unwrap();
        let read = |head: &[u8]| {
            let record = [head, &[0; 300]].concat();
            read_payload(&mut Cursor::new(&record, StreamOffset(0)), size).map(<[u8]>::len)
        };
        assert_eq!(read(&[1, 1, 0]).unwrap(), 256);
        assert!(read(&[2, 1, 0]).is_err());
        assert!(read(&[1, 1, 1]).is_err());
    }
}
