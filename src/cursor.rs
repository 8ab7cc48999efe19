//! Bounds-checked big-endian reads that know where they are.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{StreamOffset, index};

/// What is left of the input, and where it starts.
///
/// Nothing here can panic, and a read that fails does not move. A read of
/// several parts works on a copy and assigns it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    at: u64,
}

impl<'a> Cursor<'a> {
    /// A cursor over all of `bytes`, which begin at `at` in the stream.
    pub(crate) fn new(bytes: &'a [u8], at: StreamOffset) -> Self {
        Self { rest: bytes, at: at.0 }
    }

    /// Where the next byte is.
    pub(crate) fn offset(&self) -> StreamOffset {
        StreamOffset(self.at)
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    /// The bytes left, not read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The failure of reading `needed` bytes here.
    fn truncated(&self, needed: u64) -> Error {
        Error::at(self.offset(), ErrorKind::Truncated { needed, available: self.remaining() })
    }

    /// The next `N` bytes.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.truncated(N as u64));
        };
        self.rest = tail;
        self.at += N as u64;
        Ok(*head)
    }

    /// The next byte.
    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next two bytes, big-endian.
    pub(crate) fn be16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes, big-endian.
    pub(crate) fn be32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes, big-endian.
    #[inline]
    pub(crate) fn be64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes, in place.
    pub(crate) fn bytes(&mut self, len: u64) -> Result<&'a [u8]> {
        let split = index(len).and_then(|len| self.rest.split_at_checked(len));
        let Some((head, tail)) = split else {
            return Err(self.truncated(len));
        };
        self.rest = tail;
        self.at += len;
        Ok(head)
    }

    /// A counted string: one byte of length, then as many bytes.
    pub(crate) fn str8(&mut self) -> Result<&'a [u8]> {
        let mut ahead = *self;
        let len = ahead.u8()?;
        let text = ahead.bytes(len.into())?;
        *self = ahead;
        Ok(text)
    }

    /// The next byte, not read; `None` at the end.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_big_endian_and_knows_its_offset() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4, 5, 6, 7], StreamOffset(0x10));
        assert_eq!(cursor.be16().unwrap(), 0x0102);
        assert_eq!(cursor.be32().unwrap(), 0x0304_0506);
        assert_eq!(cursor.offset(), StreamOffset(0x16));
    }

    #[test]
    fn a_failed_read_does_not_move() {
        let mut cursor = Cursor::new(&[3, b'a', b'b'], StreamOffset(7));
        let error = cursor.str8().unwrap_err();
        assert_eq!(error.offset(), Some(StreamOffset(8)));
        assert!(matches!(error.kind(), ErrorKind::Truncated { needed: 3, available: 2 }));
        assert_eq!(cursor.offset(), StreamOffset(7));
        assert!(cursor.bytes(u64::MAX).is_err());
        assert_eq!(cursor.remaining(), 3);
    }
}
