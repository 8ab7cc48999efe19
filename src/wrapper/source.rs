//! Input that can be looked ahead in, and that knows where it is.

use std::io::{self, BufRead, Read};

/// Bytes read at once.
const BUFFER_LEN: usize = 128 << 10;

/// A buffered reader. Unlike [`io::BufReader`] it counts what was taken and
/// can show several bytes at the end of its buffer.
pub(super) struct Source<R> {
    inner: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were taken.
    taken: usize,
    /// Where the next byte is in the layer outside.
    at: u64,
}

impl<R: Read> Source<R> {
    /// A source whose first byte is at `at` of the layer outside.
    pub(super) fn new(inner: R, at: u64) -> Self {
        Self { inner, buffer: Vec::new(), taken: 0, at }
    }

    /// Where the next byte is in the layer outside.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// The bytes that were read and not taken.
    fn left(&self) -> &[u8] {
        self.buffer.get(self.taken..).unwrap_or_default()
    }

    /// Reads once more behind what is left; says whether there was something.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.taken.min(self.buffer.len()));
        self.taken = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + BUFFER_LEN, 0);
        let result = loop {
            match self.inner.read(self.buffer.get_mut(held..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer.truncate(held + *result.as_ref().unwrap_or(&0));
        Ok(result? > 0)
    }

    /// The next `len` bytes, not taken; fewer at the end of the input.
    pub(super) fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.left().len() < len && self.fill()? {}
        let left = self.left();
        Ok(left.get(..len).unwrap_or(left))
    }

    /// Takes zeros up to another byte or the end; says how many.
    pub(super) fn skip_zeros(&mut self) -> io::Result<u64> {
        let start = self.at;
        loop {
            let bytes = self.fill_buf()?;
            let len = bytes.len();
            let zeros = bytes.iter().position(|byte| *byte != 0).unwrap_or(len);
            self.consume(zeros);
            if zeros == 0 || zeros < len {
                return Ok(self.at - start);
            }
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left().is_empty() {
            self.fill()?;
        }
        Ok(self.left())
    }

    fn consume(&mut self, len: usize) {
        let len = len.min(self.left().len());
        self.taken += len;
        self.at += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_ahead_past_short_reads() {
        struct Dribble(u8);
        impl Read for Dribble {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let Some(first) = into.first_mut().filter(|_| self.0 < 9) else { return Ok(0) };
                *first = self.0;
                self.0 += 1;
                Ok(1)
            }
        }
        let mut source = Source::new(Dribble(0), 100);
        assert_eq!(source.skip_zeros().unwrap(), 1);
        assert_eq!(source.peek(3).unwrap(), [1, 2, 3]);
        source.consume(2);
        assert_eq!(source.offset(), 103);
        assert_eq!(source.peek(99).unwrap(), [3, 4, 5, 6, 7, 8]);
        assert_eq!(source.fill_buf().unwrap().len(), 6);
    }
}
