//! What can only be read once, unpacked into a [temporary file](Temporary), for
//! what has to go back in it.
//!
//! Nothing of it is left, however the command ends.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ramlift::wrapper::error_of;
use ramlift::{Error, Input, Progress};

use crate::exit::Failure;
use crate::layers::Scattered;
use crate::temporary::{self, Bound, Refused, Temporary};
use crate::{progress, source};

/// Bytes that are read at a time.
const CHUNK_LEN: usize = 1 << 20;

/// Unpacks what comes out of `reader`, the stream at `path`. Gives what came
/// before `reader` failed, and that failure.
pub(crate) fn unpack(
    path: &Path,
    mut reader: impl Read,
    bound: Bound,
) -> Result<(Input, Option<Error>), Failure> {
    spool(path, bound, |chunk| (0, read_chunk(&mut reader, chunk)))
}

/// The same, into a file that is to be read here and there. It has to be
/// whole.
pub(crate) fn unpack_file(path: &Path, mut reader: impl Read, bound: Bound) -> Result<File, Failure> {
    let (file, failure) = spool_file(path, bound, |chunk| (0, read_chunk(&mut reader, chunk)))?;
    failure.map_or(Ok(file), |error| Err(Failure::input(path)(error)))
}

/// The same as [`unpack`] of the VM state of a snapshot, of which zeros are no work.
pub(crate) fn gather(path: &Path, state: Scattered, bound: Bound) -> Result<(Input, Option<Error>), Failure> {
    let mut reader = state.reader();
    spool(path, bound, |chunk| match reader.skip_zeros() {
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

fn spool(path: &Path, bound: Bound, chunks: impl Chunks) -> Result<(Input, Option<Error>), Failure> {
    let (file, failure) = spool_file(path, bound, chunks)?;
    Ok((Input::of_file(path, &file).map_err(Failure::input(path))?, failure))
}

fn spool_file(path: &Path, bound: Bound, chunks: impl Chunks) -> Result<(File, Option<Error>), Failure> {
    let fail = |refused| temporary::failure(source::name(path), &refused);
    let mut temporary = Temporary::new(bound, None).map_err(fail)?;
    let copy = |progress: &Progress| copy(chunks, &mut temporary, progress);
    let failure = progress::pass(progress::is_visible(false), copy).map_err(fail)?;
    let file = temporary.finish().map_err(fail)?;
    Ok((file, failure.map(|error| error_of(error, path))))
}

/// Copies up to the end or failure of `chunks`. Gives that failure; fails only
/// where `temporary` does.
fn copy(
    mut chunks: impl Chunks,
    temporary: &mut Temporary,
    progress: &Progress,
) -> Result<Option<io::Error>, Refused> {
    let mut chunk = Vec::with_capacity(CHUNK_LEN);
    loop {
        chunk.clear();
        let (zeros, result) = chunks(&mut chunk);
        temporary.skip(zeros)?;
        temporary.put(&chunk)?;
        progress.add(chunk.len() as u64);
        let failure = result.err();
        if failure.is_some() || chunk.is_empty() {
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
        let mut temporary = Temporary::new(Bound::new(None), None).unwrap();
        let mut reader = zeros.chain(&b"stream"[..]).chain(Broken);
        let chunks = |chunk: &mut Vec<u8>| (0, read_chunk(&mut reader, chunk));
        let failure = copy(chunks, &mut temporary, &Progress::new()).unwrap();
        assert_eq!(failure.unwrap().to_string(), "broken");
        let file = temporary.finish().unwrap();
        let input = Input::of_file("stream", &file).unwrap();
        let (zeros, rest) = input.bytes().split_at(9 * CHUNK_LEN);
        assert!(zeros.iter().all(|byte| *byte == 0) && rest == b"stream");
        assert!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) < 2048);
    }
}
