//! A bound for what is unpacked: 128 bytes can become 8 GiB of zeros.

use std::io::{self, Read};

use super::{carry, failure};

/// A reader that fails where more comes out of it than is allowed. All that is
/// allowed comes before the failure.
///
/// ```
/// use std::io::Read;
/// use ramlift::wrapper::Bounded;
///
/// let mut bytes = Vec::new();
/// let mut reader = Bounded::new(std::io::repeat(0), || 1 << 20);
/// let error = reader.read_to_end(&mut bytes).unwrap_err();
/// assert_eq!(bytes.len(), 1 << 20);
/// assert!(error.to_string().contains("more than 1048576 bytes"));
/// ```
pub struct Bounded<R, F> {
    inner: R,
    /// Asked again when it is reached: the input may be one that grows.
    bound: F,
    allowed: u64,
    len: u64,
}

impl<R: Read, F: FnMut() -> u64> Bounded<R, F> {
    /// What `inner` reads, up to as many bytes as `bound` gives then.
    pub fn new(inner: R, bound: F) -> Self {
        Self { inner, bound, allowed: 0, len: 0 }
    }

    /// How many bytes may come now.
    fn left(&mut self) -> u64 {
        if self.len >= self.allowed {
            self.allowed = (self.bound)();
        }
        self.allowed.saturating_sub(self.len)
    }
}

impl<R: Read, F: FnMut() -> u64> Read for Bounded<R, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let left = self.left();
        if left > 0 {
            let read = (&mut self.inner).take(left).read(into)?;
            self.len += read as u64;
            return Ok(read);
        }
        // To end where the bound does is allowed.
        let mut beyond = [0];
        if self.inner.read(&mut beyond)? == 0 {
            return Ok(0);
        }
        let met = format!("more than {} bytes", self.allowed);
        let expected = "no more than an input of this length can honestly hold";
        Err(carry(io::ErrorKind::InvalidData, failure(self.len, "unpacked data", met, expected, BOMB)))
    }
}

const BOMB: &str = "a small file that unpacks to a huge one can be made to keep whoever reads it busy: if this is the guest that you expect, unpack it with its own command first";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wrapper::error_of;

    #[test]
    fn what_ends_at_the_bound_is_allowed() {
        let mut bytes = Vec::new();
        Bounded::new(&[7; 100][..], || 100).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 100]);
    }

    #[test]
    fn a_byte_more_is_not_and_the_failure_stays() {
        let mut reader = Bounded::new(io::repeat(7).take(101), || 100);
        let mut bytes = Vec::new();
        let error = error_of(reader.read_to_end(&mut bytes).unwrap_err(), "");
        assert_eq!((bytes.len(), error.offset().unwrap().0), (100, 100));
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_bound_that_grows_is_asked_again() {
        let mut bound = 0;
        let growing = || {
            bound += 30;
            bound.min(90)
        };
        let mut bytes = Vec::new();
        Bounded::new(io::repeat(7), growing).read_to_end(&mut bytes).unwrap_err();
        assert_eq!(bytes.len(), 90);
    }
}
