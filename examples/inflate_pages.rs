//! Inflates compressed pages on all threads and does nothing else: what the
//! extraction of compressed pages is held against.
//!
//! ```text
//! inflate_pages FILE     prints the seconds that it took
//! FILE: be32 len  len bytes of a zlib stream of one page, again and again
//! ```
//!
//! The file is in memory, and the pages are found, before time is taken. It
//! uses the crates that `ramlift` uses, and nothing of `ramlift`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use flate2::{Decompress, FlushDecompress};
use rayon::prelude::*;

const PAGE_LEN: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: inflate_pages FILE")?;
    let bytes = std::fs::read(path)?;
    let pages = pages_of(&bytes).ok_or("the file is cut")?;
    let begin = Instant::now();
    pages.par_iter().try_for_each_init(|| (Decompress::new(true), [0; PAGE_LEN]), inflate)?;
    println!("{:.6}", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The pages of the file. None if it ends inside of one.
fn pages_of(mut rest: &[u8]) -> Option<Vec<&[u8]>> {
    let mut pages = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk() {
        let page;
        (page, rest) = behind.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        pages.push(page);
    }
    rest.is_empty().then_some(pages)
}

fn inflate((inflater, page): &mut (Decompress, [u8; PAGE_LEN]), deflated: &&[u8]) -> Result<(), String> {
    inflater.reset(true);
    let done = inflater.decompress(deflated, page, FlushDecompress::Finish);
    done.map_err(|error| error.to_string())?;
    if inflater.total_out() != PAGE_LEN as u64 {
        return Err(format!("{} bytes instead of a page", inflater.total_out()));
    }
    black_box(page);
    Ok(())
}
