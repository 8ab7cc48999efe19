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
use crate::progress;

/// Bytes that are read at a time.
const CHUNK_LEN: usize = 1 << 20;

/// Bytes that are written or, if all are zero, left out.
const PIECE_LEN: usize = 1 << 16;

/// Unpacks what comes out of `reader`, the stream at `path`. Gives what came
/// before `reader` failed, and that failure.
pub(crate) fn unpack(path: &Path, reader: impl Read) -> Result<(Input, Option<Error>), Failure> {
    let dir = std::env::temp_dir();
    let file = tempfile::tempfile_in(&dir).map_err(Failure::file(&dir))?;
    let copy = |progress: &Progress| copy(reader, &file, progress);
    let failure = progress::pass(progress::is_visible(false), copy).map_err(Failure::file(&dir))?;
    let input = Input::of_file(path, &file).map_err(Failure::input(path))?;
    Ok((input, failure.map(|error| error_of(error, path))))
}

/// Copies up to the end or failure of `reader`. Gives that failure; fails only
/// where `file` does.
fn copy(mut reader: impl Read, file: &File, progress: &Progress) -> io::Result<Option<io::Error>> {
    let mut chunk = Vec::with_capacity(CHUNK_LEN);
    let mut len = 0;
    loop {
        chunk.clear();
        let result = (&mut reader).take(CHUNK_LEN as u64).read_to_end(&mut chunk);
        for piece in chunk.chunks(PIECE_LEN) {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, len)?;
            }
            len += piece.len() as u64;
        }
        progress.add(chunk.len() as u64);
        let failure = result.err();
        if failure.is_some() || chunk.len() < CHUNK_LEN {
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
        let reader = zeros.chain(&b"stream"[..]).chain(Broken);
        let failure = copy(reader, &file, &Progress::new()).unwrap();
        assert_eq!(failure.unwrap().to_string(), "broken");
        let input = Input::of_file("stream", &file).unwrap();
        let (zeros, rest) = input.bytes().split_at(9 * CHUNK_LEN);
        assert!(zeros.iter().all(|byte| *byte == 0) && rest == b"stream");
        assert!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) < 2048);
    }
}
