//! What can only be read once, unpacked into a file, for what has to go back
//! in it.
//!
//! The file has no name and is in the system's directory for such (`TMPDIR`):
//! nothing of it is left, however the command ends. Runs of zeros are holes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ramlift::wrapper::error_of;
use ramlift::{Error, Input, Progress};

use crate::exit::Failure;
use crate::layers::Scattered;
use crate::{inputs, progress};

/// Bytes that are read at a time.
const CHUNK_LEN: usize = 1 << 20;

/// Bytes that are written or, if all are zero, left out.
const PIECE_LEN: usize = 1 << 16;

/// Unpacks what comes out of `reader`, the stream at `path`. Gives what came
/// before `reader` failed, and that failure.
pub(crate) fn unpack(path: &Path, mut reader: impl Read) -> Result<(Input, Option<Error>), Failure> {
    spool(path, |chunk| (0, read_chunk(&mut reader, chunk)))
}

/// The same, into a file that is to be read here and there. It has to be
/// whole.
pub(crate) fn unpack_file(path: &Path, mut reader: impl Read) -> Result<File, Failure> {
    let (file, failure) = spool_file(path, |chunk| (0, read_chunk(&mut reader, chunk)))?;
    failure.map_or(Ok(file), |error| Err(Failure::input(path)(error)))
}

/// The same as [`unpack`] of the VM state of a snapshot, of which zeros are no work.
pub(crate) fn gather(path: &Path, state: Scattered) -> Result<(Input, Option<Error>), Failure> {
    let mut reader = state.reader();
    spool(path, |chunk| match reader.skip_zeros() {
        Ok(zeros) => (zeros, read_chunk(&mut reader, chunk)),
        Err(error) => (0, Err(error)),
    })
}

fn read_chunk(reader: &mut impl Read, chunk: &mut Vec<u8>) -> io::Result<usize> {
    reader.take(CHUNK_LEN as u64).read_to_end(chunk)
}

/// Gives a next chunk, and how many zeros stand before it; none at the end.
trait Chunks: FnMut(&mut Vec<u8>) -> (u64, io::Result<usize>) {}
impl<T: FnMut(&mut Vec<u8>) -> (u64, io::Result<usize>)> Chunks for T {}

fn spool(path: &Path, chunks: impl Chunks) -> Result<(Input, Option<Error>), Failure> {
    let (file, failure) = spool_file(path, chunks)?;
    Ok((Input::of_file(path, &file).map_err(Failure::input(path))?, failure))
}

fn spool_file(path: &Path, chunks: impl Chunks) -> Result<(File, Option<Error>), Failure> {
    let dir = std::env::temp_dir();
    let file = tempfile::tempfile_in(&dir).map_err(Failure::file(&dir))?;
    inputs::remember_temporary(&dir, &file).map_err(Failure::file(&dir))?;
    let copy = |progress: &Progress| copy(chunks, &file, progress);
    let failure = progress::pass(progress::is_visible(false), copy).map_err(Failure::file(&dir))?;
    Ok((file, failure.map(|error| error_of(error, path))))
}

/// Copies up to the end or failure of `chunks`. Gives that failure; fails only
/// where `file` does.
fn copy(mut chunks: impl Chunks, file: &File, progress: &Progress) -> io::Result<Option<io::Error>> {
    let mut chunk = Vec::with_capacity(CHUNK_LEN);
    let mut len: u64 = 0;
    loop {
        chunk.clear();
        let (zeros, result) = chunks(&mut chunk);
        len = len.checked_add(zeros).ok_or(io::ErrorKind::FileTooLarge)?;
        for piece in chunk.chunks(PIECE_LEN) {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, len)?;
            }
            len += piece.len() as u64;
        }
        progress.add(chunk.len() as u64);
        let failure = result.err();
        if failure.is_some() || chunk.is_empty() {
            file.set_len(len)?;
            return Ok(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_a_failure_is_kept_and_zeros_take_no_room() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let zeros = io::repeat(0).take(9 * CHUNK_LEN as u64);
        let file = tempfile::tempfile().unwrap();
        let mut reader = zeros.chain(&b"stream"[..]).chain(Broken);
        let chunks = |chunk: &mut Vec<u8>| (0, read_chunk(&mut reader, chunk));
        let failure = copy(chunks, &file, &Progress::new()).unwrap();
        assert_eq!(failure.unwrap().to_string(), "broken");
        let input = Input::of_file("stream", &file).unwrap();
        let (zeros, rest) = input.bytes().split_at(9 * CHUNK_LEN);
        assert!(zeros.iter().all(|byte| *byte == 0) && rest == b"stream");
        assert!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) < 2048);
    }
}
