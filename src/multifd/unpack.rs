//! The compressed streams of a channel.
//!
//! QEMU compresses all pages of a channel as one zlib stream, or one zstd
//! frame, which it flushes at the end of each packet and never ends. So what a
//! packet holds can only be known once all before it has been unpacked, and is
//! known in full at the packet's end.
//!
//! Sources followed: QEMU `migration/multifd-zlib.c`,
//! `migration/multifd-zstd.c` (`…_send_prepare`, `…_recv`).

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::packet::MultifdCompression;
use crate::wire::multifd::ZSTD_WINDOW_LOG;

/// Unpacks the payloads of one channel, in their order.
pub(super) enum Unpacker {
    Zlib(Decompress),
    Zstd(Decoder<'static>),
}

impl Unpacker {
    /// `None` if the channel has nothing to unpack.
    pub(super) fn new(compression: MultifdCompression) -> std::io::Result<Option<Self>> {
        Ok(match compression {
            MultifdCompression::Zlib => Some(Self::Zlib(Decompress::new(true))),
            MultifdCompression::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Some(Self::Zstd(decoder))
            }
            _ => None,
        })
    }

    /// Unpacks one payload into `out`, and gives the bytes written.
    ///
    /// `out` should have room for more than the payload is expected to give:
    /// what comes behind the last page, without giving a byte, is read only if
    /// there is room for one.
    ///
    /// # Errors
    /// What is wrong with the payload.
    pub(super) fn unpack(&mut self, mut payload: &[u8], out: &mut [u8]) -> Result<usize, String> {
        let mut filled = 0;
        while let Some(room @ [_, ..]) = out.get_mut(filled..) {
            let (read, written) = self.step(payload, room)?;
            payload = payload.get(read..).unwrap_or_default();
            filled += written;
            if payload.is_empty() {
                return Ok(filled);
            }
            if read == 0 && written == 0 {
                return Err(format!("a stream that ends {} bytes before the packet", payload.len()));
            }
        }
        Ok(filled)
    }

    /// Bytes read and bytes written.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), String> {
        match self {
            Self::Zlib(inflate) => {
                let (read, written) = (inflate.total_in(), inflate.total_out());
                inflate.decompress(input, out, FlushDecompress::Sync).map_err(|why| why.to_string())?;
                let bytes = |after: u64, before: u64| usize::try_from(after.wrapping_sub(before));
                let read = bytes(inflate.total_in(), read).map_err(|why| why.to_string())?;
                let written = bytes(inflate.total_out(), written).map_err(|why| why.to_string())?;
                Ok((read, written))
            }
            Self::Zstd(decoder) => {
                let status = decoder.run_on_buffers(input, out).map_err(|why| why.to_string())?;
                Ok((status.bytes_read, status.bytes_written))
            }
        }
    }
}
