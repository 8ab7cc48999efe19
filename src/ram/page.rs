//! The content of single pages, whatever encoding they came in.
//!
//! A COMPRESS_PAGE record (QEMU 2.4 to 9.0) holds a length and one zlib stream
//! (RFC 1950), which inflates to exactly one page:
//!
//! ```text
//! be32 len  len bytes
//! ```
//!
//! Source followed: QEMU 7.2 `migration/ram.c` (`do_compress_ram_page`,
//! `decompress_data_with_multi_threads`).

use flate2::{Decompress, FlushDecompress, Status};

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::Ram;
use crate::ram::index::{Chain, PageSource};
use crate::ram::xbzrle;
use crate::units::{StreamOffset, TargetPageSize, index};

/// What inflates pages, one after the other.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Inflates the compressed page that `cursor` stands before, to exactly
    /// the length of `page`.
    pub(crate) fn inflate(&mut self, mut cursor: Cursor<'_>, page: &mut [u8]) -> Result<()> {
        let at = cursor.offset();
        let len = u64::from(cursor.be32()?);
        let compressed = cursor.bytes(len)?;
        let met = match self.run(compressed, page) {
            Ok((Status::StreamEnd, out)) if out == page.len() as u64 => return Ok(()),
            Ok((Status::StreamEnd, out)) => format!("{out} bytes"),
            Ok(_) => "a stream that does not end".to_owned(),
            Err(error) => error.to_string(),
        };
        let expected = format!("a zlib stream of one page, {} bytes", page.len());
        Err(Error::at(at, ErrorKind::Malformed { what: "compressed page", met, expected }))
    }

    fn run(
        &mut self,
        compressed: &[u8],
        page: &mut [u8],
    ) -> std::result::Result<(Status, u64), flate2::DecompressError> {
        self.0.reset(true);
        let mut status = self.0.decompress(compressed, page, FlushDecompress::Finish)?;
        if status != Status::StreamEnd {
            // The page is full, and the stream's checksum may not be read yet.
            let rest = compressed.get(index(self.0.total_in()).unwrap_or(0)..).unwrap_or_default();
            status = self.0.decompress(rest, &mut [], FlushDecompress::Finish)?;
        }
        Ok((status, self.0.total_out()))
    }

    /// How long the page is that a compressed page inflates to, if it can be
    /// one.
    pub(crate) fn page_size(&mut self, mut cursor: Cursor<'_>) -> Option<TargetPageSize> {
        const LONGEST: usize = 1 << 16;
        let len = u64::from(cursor.be32().ok()?);
        let compressed = cursor.bytes(len).ok()?;
        let (status, out) = self.run(compressed, &mut vec![0; LONGEST]).ok()?;
        TargetPageSize::from_bytes(out).filter(|_| status == Status::StreamEnd)
    }
}

/// The longest that a page can be when compressed. What QEMU writes is bounded
/// by `compressBound` of the library it was built with: a little over a page
/// with zlib, nine bits a byte with others.
pub(crate) fn compress_bound(page_size: TargetPageSize) -> u64 {
    let len = page_size.bytes();
    len + len / 8 + 64
}

/// Puts pages together that are not simply bytes of the stream.
pub(crate) struct PageReader<'r, 'a> {
    ram: &'r Ram<'a>,
    inflater: Inflater,
    page: Vec<u8>,
}

impl<'r, 'a> PageReader<'r, 'a> {
    pub(crate) fn new(ram: &'r Ram<'a>) -> Self {
        let page = vec![0; index(ram.page_size().bytes()).unwrap_or(0)];
        Self { ram, inflater: Inflater::new(), page }
    }

    /// The bytes of a page, from wherever they are. Zeros if it is absent.
    ///
    /// # Errors
    /// If what the stream has for it cannot be decoded.
    pub(crate) fn read(&mut self, source: &PageSource<'_>) -> Result<&[u8]> {
        match self.decode(source) {
            // A salvage has listed the page.
            Err(_) if self.ram.is_tolerant() => Ok(&self.page),
            decoded => decoded.map(|()| self.page.as_slice()),
        }
    }

    fn decode(&mut self, source: &PageSource<'_>) -> Result<()> {
        match source {
            PageSource::Absent => self.page.fill(0),
            PageSource::Fill(byte) => self.page.fill(*byte),
            PageSource::Data(at) => {
                let data = self.ram.data(*at).ok_or_else(|| gone(*at))?;
                if let Some((page, behind)) = self.page.split_at_mut_checked(data.len()) {
                    page.copy_from_slice(data);
                    behind.fill(0);
                }
            }
            PageSource::Compressed(at) => {
                let bytes = self.ram.sources().from(*at).ok_or_else(|| gone(*at))?;
                let cursor = Cursor::new(bytes, *at);
                // Half a page is none, and what was here before is another.
                self.inflater.inflate(cursor, &mut self.page).inspect_err(|_| self.page.fill(0))?;
            }
            PageSource::Xbzrle(chain) => {
                self.decode(&chain.base())?;
                self.apply(chain)?;
            }
            PageSource::Image => return Err(gone_by()),
        }
        Ok(())
    }

    /// The bytes of a page whose chain builds on what is in its image, which
    /// `load` reads.
    pub(crate) fn read_onto_image(
        &mut self,
        chain: &Chain<'_>,
        load: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<&[u8]> {
        load(&mut self.page)?;
        self.apply(chain)?;
        Ok(&self.page)
    }

    /// The page that was read last.
    pub(crate) fn page(&self) -> &[u8] {
        &self.page
    }

    /// Lays a chain's deltas over the page.
    fn apply(&mut self, chain: &Chain<'_>) -> Result<()> {
        for at in chain.deltas() {
            let bytes = self.ram.sources().from(at).ok_or_else(|| gone(at))?;
            xbzrle::apply(Cursor::new(bytes, at), &mut self.page, self.ram.page_size())?;
        }
        Ok(())
    }
}

/// The failure of reading a page of a stream that went by.
pub(crate) fn gone_by() -> Error {
    Error::new(ErrorKind::GoneBy { what: "pages are in the images that were written meanwhile" })
}

/// The index holds only places that were there.
fn gone(at: StreamOffset) -> Error {
    Error::at(at, ErrorKind::Truncated { needed: 1, available: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn record(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        let stream = encoder.finish().unwrap();
        [u32::try_from(stream.len()).unwrap().to_be_bytes().as_slice(), &stream].concat()
    }

    fn inflated(record: &[u8]) -> Result<Vec<u8>> {
        let mut page = vec![0; 4096];
        Inflater::new().inflate(Cursor::new(record, StreamOffset(0)), &mut page)?;
        Ok(page)
    }

    #[test]
    fn a_page_comes_back() {
        let content: Vec<u8> = (0..4096u32).map(|at| ((at * at) >> 3).to_le_bytes()[0]).collect();
        assert_eq!(inflated(&record(&content)).unwrap(), content);
    }

    #[test]
    fn what_is_not_one_page_is_refused() {
        assert!(inflated(&record(&[7; 4095])).is_err());
        assert!(inflated(&record(&[7; 4097])).is_err());
        let whole = record(&[7; 4096]);
        for at in 4..whole.len() {
            let mut cut = whole.clone();
            cut.truncate(at);
            assert!(inflated(&cut).is_err(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            if let Ok(page) = inflated(&flipped) {
                assert_eq!(page, [7; 4096], "flipped at {at}");
            }
        }
    }

    #[test]
    fn the_size_of_a_page_shows() {
        let size = |len| Inflater::new().page_size(Cursor::new(&record(&vec![1; len]), StreamOffset(0)));
        assert_eq!(size(4096), TargetPageSize::from_bytes(4096));
        assert_eq!(size(65536), TargetPageSize::from_bytes(65536));
        assert_eq!(size(5000), None);
        assert_eq!(size(65537), None);
    }
}
